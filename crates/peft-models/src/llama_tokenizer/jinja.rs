//! What chat templates have besides Jinja's language, and bounds on what they do.

use std::borrow::Cow;
use std::io::{self, Write};

use minijinja::value::{Kwargs, Rest, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// The longest template that is read, in bytes. The longest published ones have some 20 KB.
const LONGEST_TEMPLATE: usize = 1 << 20;

/// The longest text that a template may write, in bytes, besides what the messages say.
pub(super) const LONGEST_OUTPUT: usize = 1 << 24;

/// Renders `template`, of which at most `most` bytes may come.
pub(super) fn render(
    environment: &Environment<'_>,
    template: &str,
    context: Value,
    most: usize,
) -> Result<String, Error> {
    if template.len() > LONGEST_TEMPLATE {
        return Err(refused(format!(
            "it has {} bytes; at most {LONGEST_TEMPLATE} are read",
            template.len()
        )));
    }
    let template = without_generation_tags(template);
    let template = environment.template_from_named_str("the chat template", &template)?;
    let mut text = Bounded {
        text: Vec::new(),
        most,
        full: false,
    };
    let outcome = template.render_captured_to(context, &mut text).map(drop);
    if text.full {
        return Err(refused(format!("it writes more than {most} bytes")));
    }
    outcome?;
    String::from_utf8(text.text).map_err(|error| refused(error.to_string()))
}

fn refused(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// A text that does not grow for ever.
struct Bounded {
    text: Vec<u8>,
    most: usize,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.most {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The template with upstream's `generation` tags, which mark replies for training, as tags that do nothing. They
/// stay tags, so that the space around them is what it was.
fn without_generation_tags(template: &str) -> Cow<'_, str> {
    if !template.contains("generation") {
        return Cow::Borrowed(template);
    }
    let mut found = String::with_capacity(template.len());
    let mut rest = template;
    let mut raw = false;
    while let Some(start) = rest.find('{') {
        found += &rest[..start];
        rest = &rest[start..];
        let end = match rest.as_bytes().get(1) {
            Some(b'%') => end_of(rest, "%}"),
            Some(b'{') if !raw => end_of(rest, "}}"),
            Some(b'#') if !raw => rest.find("#}").map(|at| at + 2),
            _ => Some(1),
        };
        // What does not end is left to the parser, which says where.
        let tag = &rest[..end.unwrap_or(rest.len())];
        rest = &rest[tag.len()..];
        let inner = tag
            .strip_prefix("{%")
            .and_then(|tag| tag.strip_suffix("%}"));
        let word = inner.map(|inner| inner.trim_matches(['-', '+']).trim());
        raw = match word {
            Some("raw") => true,
            Some("endraw") => false,
            _ => raw,
        };
        match word {
            Some("generation") if !raw => found += &tag.replacen("generation", "if true", 1),
            Some("endgeneration") if !raw => found += &tag.replacen("endgeneration", "endif", 1),
            _ => found += tag,
        }
    }
    found += rest;
    Cow::Owned(found)
}

/// Where the tag that `text` begins with ends in `close`, texts in quotes left out.
fn end_of(text: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            None if matches!(byte, b'"' | b'\'') => quote = Some(byte),
            None if text.as_bytes()[at..].starts_with(close.as_bytes()) => {
                return Some(at + close.len());
            }
            _ => {}
        }
    }
    None
}

/// The filter `tojson` as upstream has it, which is Python's `json.dumps`: `indent`, and whether characters
/// beyond ASCII are escaped (`ensure_ascii`), which they are not by default; nothing is escaped for HTML.
pub(super) fn tojson(value: &Value, settings: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let settings = settings.into_values();
    let (positional, named): (&[Value], Kwargs) = from_args(&settings)?;
    let given = |index: usize| -> Result<Option<Value>, Error> {
        let found = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(NAMES[index])?,
        };
        Ok(found.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    if positional.len() > NAMES.len() {
        return Err(refused("tojson takes at most four settings".to_string()));
    }
    let ascii = given(0)?.is_some_and(|value| value.is_true());
    let indent = match given(1)? {
        None => None,
        Some(value) => {
            let spaces = value.as_i64().filter(|spaces| (0..=16).contains(spaces));
            let spaces = spaces.ok_or_else(|| refused("`indent` must be 0 to 16".to_string()))?;
            Some(vec![b' '; spaces.unsigned_abs() as usize])
        }
    };
    let separators = match given(2)? {
        None => None,
        Some(value) => {
            let two: Vec<String> = (value.try_iter()?).map(|part| part.to_string()).collect();
            let two = <[String; 2]>::try_from(two);
            Some(two.map_err(|_| refused("`separators` must be two texts".to_string()))?)
        }
    };
    let sorted = given(3)?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;

    let json = serde_json::to_value(value).map_err(|error| refused(error.to_string()))?;
    let json = if sorted { sort(json) } else { json };
    let [item, key] = separators.unwrap_or_else(|| {
        let item = if indent.is_some() { "," } else { ", " };
        [item.to_string(), ": ".to_string()]
    });
    let formatter = Python {
        pretty: indent.as_deref().map(PrettyFormatter::with_indent),
        item,
        key,
        ascii,
    };
    let mut text = Vec::new();
    json.serialize(&mut Serializer::with_formatter(&mut text, formatter))
        .map_err(|error| refused(error.to_string()))?;
    let text = String::from_utf8(text).map_err(|error| refused(error.to_string()))?;
    Ok(Value::from(text))
}

fn sort(json: serde_json::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match json {
        Json::Object(fields) => {
            let mut fields: Vec<_> = fields
                .into_iter()
                .map(|(name, value)| (name, sort(value)))
                .collect();
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            Json::Object(fields.into_iter().collect())
        }
        Json::Array(values) => values.into_iter().map(sort).collect(),
        other => other,
    }
}

/// JSON as Python writes it.
struct Python<'a> {
    pretty: Option<PrettyFormatter<'a>>,
    /// Between items.
    item: String,
    /// Between a name and its value.
    key: String,
    ascii: bool,
}

impl Python<'_> {
    /// Before an item: what separates it from the one before, and the line's indent.
    fn before<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        match &mut self.pretty {
            // The first item of a pretty array has no comma, but a line of its own.
            Some(pretty) => pretty.begin_array_value(writer, true),
            None => Ok(()),
        }
    }
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.begin_array(writer),
            None => writer.write_all(b"["),
        }
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.end_array(writer),
            None => writer.write_all(b"]"),
        }
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.before(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.end_array_value(writer),
            None => Ok(()),
        }
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.begin_object(writer),
            None => writer.write_all(b"{"),
        }
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.end_object(writer),
            None => writer.write_all(b"}"),
        }
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.before(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.end_object_value(writer),
            None => Ok(()),
        }
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for character in fragment.chars() {
            if character.is_ascii() {
                writer.write_all(&[character as u8])?;
                continue;
            }
            for unit in character.encode_utf16(&mut units) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?;
        environment.set_syntax(syntax);
        environment.add_filter("tojson", tojson);
        render(&environment, template, Value::from(()), 200)
    }

    #[test]
    fn generation_tags_do_nothing() {
        for (template, expected) in [
            ("a{% generation %}b{% endgeneration %}c", "abc"),
            ("a {%- generation -%} b {%- endgeneration -%} c", "abc"),
            ("a {%-generation%} b {%endgeneration-%} c", "a b c"),
            // Lines that hold a tag alone leave nothing.
            (
                "a\n  {% generation %}\nb\n  {% endgeneration %}\nc",
                "a\nb\nc",
            ),
            (
                "{% generation %}{{ '{% generation %}' }}{% endgeneration %}",
                "{% generation %}",
            ),
            ("{# {% generation %} #}x{{ \"%}\\\"\" }}", "x%}\""),
            ("{% raw %}{% generation %}{% endraw %}", "{% generation %}"),
            ("{% set generation = 2 %}{{ generation }}{", "2{"),
        ] {
            assert_eq!(rendered(template).unwrap(), expected, "{template}");
        }
        for broken in ["{% generation %}a", "generation {{ 'a", "generation {% if"] {
            assert!(rendered(broken).is_err(), "{broken}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_no_generation_tag_stays(parts in proptest::collection::vec(0_usize..12, 0..40)) {
            const PARTS: [&str; 12] = [
                "{", "}", "%", "#", "\"", "'", "\\", "é", " generation ", "{% raw %}", "{% endraw %}", "{{",
            ];
            let template: String = parts.iter().map(|part| PARTS[*part]).collect();
            let found = without_generation_tags(&template).into_owned();
            if !template.contains("{% generation %}") {
                proptest::prop_assert_eq!(found, template);
            }
        }
    }

    /// Values of Python's `json.dumps(…, ensure_ascii=False)`.
    #[test]
    fn json_is_pythons() {
        let value = "{'b': [1, 2.5, none, true, []], 'a': '<é🙂>\"\\n'}";
        for (settings, expected) in [
            ("", r#"{"b": [1, 2.5, null, true, []], "a": "<é🙂>\"\n"}"#),
            (
                "(ensure_ascii=true)",
                r#"{"b": [1, 2.5, null, true, []], "a": "<\u00e9\ud83d\ude42>\"\n"}"#,
            ),
            (
                "(separators=(',', ':'), sort_keys=true)",
                r#"{"a":"<é🙂>\"\n","b":[1,2.5,null,true,[]]}"#,
            ),
            (
                "(indent=2)",
                "{\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true,\n    []\n  ],\n  \"a\": \"<é🙂>\\\"\\n\"\n}",
            ),
        ] {
            let template = format!("{{{{ {value} | tojson{settings} }}}}");
            assert_eq!(rendered(&template).unwrap(), expected, "{settings}");
        }
        for wrong in [
            "(indent=-1)",
            "(separators=1)",
            "(colour=1)",
            "(1, 2, 3, 4, 5)",
        ] {
            let template = format!("{{{{ 1 | tojson{wrong} }}}}");
            assert!(rendered(&template).is_err(), "{wrong}");
        }
    }

    #[test]
    fn templates_and_their_texts_are_bounded() {
        assert_eq!(rendered(&"a".repeat(200)).unwrap().len(), 200);
        let error = rendered(&"a".repeat(201)).unwrap_err().to_string();
        assert!(error.contains("more than 200 bytes"), "{error}");
        let loops = "{% for a in range(99999) %}aaaaaaaa{% endfor %}";
        let error = rendered(loops).unwrap_err().to_string();
        assert!(error.contains("more than 200 bytes"), "{error}");
        let error = rendered(&"a".repeat(LONGEST_TEMPLATE + 1)).unwrap_err();
        assert!(error.to_string().contains("are read"), "{error}");
    }
}

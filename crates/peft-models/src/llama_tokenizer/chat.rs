//! Chat templates: from messages to the text that a model was trained on.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};

use super::{Moment, jinja};

/// Instructions that a template may run. Published ones take some tens for a message.
const FUEL: u64 = 10_000_000;

/// A message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant` for most models.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }

    /// An instruction for the whole chat; comes first.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model says.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    fn value(&self) -> Value {
        let fields = [("role", &self.role), ("content", &self.content)];
        // In this order, which `tojson` shows.
        Value::from_pairs(fields)
    }
}

/// The text of a chat, by a template in Jinja's language with upstream's settings.
///
/// `special` are the special tokens that the template can name; one that is none is not defined.
/// `now` is what `strftime_now` takes for the present time. A template that runs for long or writes much is
/// stopped; one that builds long texts and does not write them is not.
pub(super) fn render(
    template: &str,
    messages: &[Message],
    add_generation_prompt: bool,
    special: &[(&'static str, Option<&str>)],
    now: Moment,
) -> Result<String, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    // Templates call methods that strings and dictionaries have in Python.
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", jinja::tojson);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function(
        "strftime_now",
        move |format: String| -> Result<String, Error> {
            now.format(&format).ok_or_else(|| {
                let reason = format!("strftime_now: `{format}` is not a format of dates");
                Error::new(ErrorKind::InvalidOperation, reason)
            })
        },
    );
    let said: usize = messages.iter().map(|message| message.content.len()).sum();
    let most = said.saturating_add(jinja::LONGEST_OUTPUT);
    let messages: Vec<Value> = messages.iter().map(Message::value).collect();
    let mut context = BTreeMap::from([
        ("messages", Value::from(messages)),
        ("add_generation_prompt", Value::from(add_generation_prompt)),
        ("tools", Value::from(())),
        ("documents", Value::from(())),
    ]);
    for &(name, token) in special {
        if let Some(token) = token {
            context.insert(name, Value::from(token));
        }
    }
    jinja::render(&environment, template, Value::from(context), most)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        templates: BTreeMap<String, String>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        template: String,
        messages: Vec<Message>,
        prompt: bool,
        rendered: Option<String>,
        error: Option<String>,
    }

    #[test]
    fn chats_are_rendered_as_upstream_renders_them() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/generate/chat.json");
        let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(golden.cases.len() >= 32);
        let special = [
            ("bos_token", Some("<|begin|>")),
            ("eos_token", Some("<|end|>")),
            ("pad_token", None),
        ];
        let now: Moment = "2026-03-07T08:00:00+00:00".parse().unwrap();
        for case in golden.cases {
            let found = render(
                &golden.templates[&case.template],
                &case.messages,
                case.prompt,
                &special,
                now,
            );
            match (found, case.rendered, case.error) {
                (Ok(found), Some(expected), None) => assert_eq!(found, expected, "{}", case.name),
                (Err(found), None, Some(expected)) => {
                    let found = found.to_string();
                    assert!(found.contains(&expected), "{}: {found}", case.name);
                }
                (found, ..) => panic!("{}: {found:?}", case.name),
            }
        }
    }

    #[test]
    fn a_format_that_is_none_is_named() {
        let template = "{{ strftime_now('%Q') }}";
        let error = render(template, &[], true, &[], Moment::now()).unwrap_err();
        assert!(error.to_string().contains("`%Q`"), "{error}");
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let loops =
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        let error = render(loops, &[], true, &[], Moment::now()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfFuel);
        // What a chat takes is far below.
        let each = "{% for message in messages %}{{ message.content }}{% endfor %}";
        let messages = vec![Message::user("Hi. "); 10_000];
        let text = render(each, &messages, true, &[], Moment::now()).unwrap();
        assert_eq!(text.len(), 40_000);
    }

    #[test]
    fn a_damaged_template_is_named_with_its_line() {
        let error = render("a\n{% if %}", &[], true, &[], Moment::now()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("the chat template:2"), "{error}");
    }
}

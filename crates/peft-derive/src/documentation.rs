//! What a field's documentation need not say: its default and its range.

use quote::quote;
use syn::{Attribute, Expr, Lit, Meta, parse_quote};

use crate::field::{ConfigField, Kind};
use crate::range;

/// Fields that mean the same in every configuration, by their types.
const WELL_KNOWN: [(&str, &str); 3] = [
    ("Targets", " Layers to adapt. Default: `all-linear`."),
    ("Common", " Fields that every method has."),
    ("Bias", " Biases to train. Default: none."),
];

/// Adds the default and the range, where the field's documentation does not state a default.
pub(crate) fn complete(field: &ConfigField, attributes: &mut Vec<Attribute>) {
    let lines: Vec<String> = attributes.iter().filter_map(line).collect();
    let Some(last) = lines.last() else {
        let known = WELL_KNOWN.iter().find(|(name, _)| field.is_called(name));
        attributes.extend(known.map(|(_, text)| parse_quote!(#[doc = #text])));
        return;
    };
    if lines.iter().any(|line| line.contains("Default:")) {
        return;
    }
    let Some(default) = default(field) else {
        return;
    };
    // Behind a list, a paragraph of its own.
    if last.trim_start().starts_with(['-', '|']) {
        attributes.push(parse_quote!(#[doc = ""]));
    }
    let text = format!(" Default: {default}{}.", field.range.documentation());
    attributes.push(parse_quote!(#[doc = #text]));
}

/// A line of documentation.
fn line(attribute: &Attribute) -> Option<String> {
    let Meta::NameValue(meta) = &attribute.meta else {
        return None;
    };
    match &meta.value {
        Expr::Lit(value) if meta.path.is_ident("doc") => match &value.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

/// The default in words, if the field's type or its attribute says it.
fn default(field: &ConfigField) -> Option<String> {
    let given = field.default.as_ref();
    Some(match (&field.kind, given) {
        (Kind::Number { .. }, Some(value)) => range::text(value),
        (Kind::Number { optional, .. }, None) => if *optional { "none" } else { "0" }.into(),
        (Kind::Bool, None) => "false".into(),
        (Kind::ByLayer { .. } | Kind::Optional(_), None) => "none".into(),
        (_, Some(value)) => format!("`{}`", quote!(#value).to_string().replace(' ', "")),
        (Kind::Other, None) => return None,
    })
}

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
        (Kind::Number { .. } | Kind::Bool, Some(value)) => range::text(value),
        (Kind::Number { optional, .. }, None) => if *optional { "none" } else { "0" }.into(),
        (Kind::Bool, None) => "false".into(),
        (Kind::ByLayer { .. } | Kind::Optional(_), None) => "none".into(),
        (_, Some(value)) => format!("`{}`", quote!(#value).to_string().replace(' ', "")),
        (Kind::Other, None) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::ItemStruct;

    /// The documentation of the fields of a struct, after it was completed.
    fn completed(mut item: ItemStruct) -> Vec<Vec<String>> {
        let fields = item.fields.iter_mut().map(|field| {
            let found = ConfigField::take(field).unwrap_or_else(|error| panic!("{error}"));
            complete(&found, &mut field.attrs);
            field.attrs.iter().filter_map(line).collect()
        });
        fields.collect()
    }

    #[test]
    fn defaults_and_ranges_are_added() {
        let found = completed(parse_quote! {
            struct Config {
                /// Rank.
                #[field(default = 8, at_least = 1)]
                r: usize,
                /// Dropout.
                #[field(probability)]
                dropout: f64,
                /// Factor.
                #[field(default = -2.0, finite)]
                scaling: f64,
                /// On.
                #[field(default = true)]
                on: bool,
                /// Terms.
                #[field(at_least = 1)]
                terms: Option<usize>,
                /// Ranks.
                #[field(at_least = 1)]
                rank_pattern: ByLayer<usize>,
                /// Name.
                #[field(default = "zeros")]
                init: String,
            }
        });
        let added: Vec<&str> = found.iter().map(|lines| lines[1].as_str()).collect();
        let expected = [
            " Default: 8; at least 1.",
            " Default: 0; in [0, 1).",
            " Default: -2.",
            " Default: true.",
            " Default: none; at least 1.",
            " Default: none; at least 1.",
            " Default: `\"zeros\"`.",
        ];
        assert_eq!(added, expected);
    }

    #[test]
    fn what_is_said_is_not_said_again() {
        let found = completed(parse_quote! {
            struct Config {
                /// Rank. Default: the model's width.
                #[field(any)]
                r: usize,
                /// Kind, whose default only its type knows.
                kind: Kind,
                /// Modes:
                ///
                /// - one
                mode: bool,
                targets: Targets,
                /// Layers of its own. Default: none.
                other: Targets,
                bias: Bias,
                common: Common,
            }
        });
        assert_eq!(found[0].len(), 1);
        assert_eq!(found[1].len(), 1);
        assert_eq!(found[2][2..], [" - one", "", " Default: false."]);
        assert_eq!(found[3], [" Layers to adapt. Default: `all-linear`."]);
        assert_eq!(found[4].len(), 1);
        assert_eq!(found[5], [" Biases to train. Default: none."]);
        assert_eq!(found[6], [" Fields that every method has."]);
    }
}

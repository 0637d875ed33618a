//! What a number may be, as a condition and in words.

use proc_macro2::TokenStream;
use quote::quote;
use syn::meta::ParseNestedMeta;
use syn::{Error, Expr, Ident, Result};

/// Which type a number has.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Whole,
    Float,
}

impl Number {
    /// By the type's name.
    pub(crate) fn of(name: &Ident) -> Option<Self> {
        match name.to_string().as_str() {
            "f32" | "f64" => Some(Self::Float),
            "usize" | "u8" | "u16" | "u32" | "u64" | "isize" | "i8" | "i16" | "i32" | "i64" => {
                Some(Self::Whole)
            }
            _ => None,
        }
    }
}

/// The range that a field states.
#[derive(Default)]
pub(crate) struct Range {
    /// `any`, `finite`, `positive` or `probability`.
    word: Option<Ident>,
    at_least: Option<Expr>,
    above: Option<Expr>,
    at_most: Option<Expr>,
    below: Option<Expr>,
}

impl Range {
    /// Reads one argument, if it is one of a range.
    pub(crate) fn read(&mut self, meta: &ParseNestedMeta<'_>) -> Result<bool> {
        let name = meta.path.require_ident()?.clone();
        let bound = match name.to_string().as_str() {
            "any" | "finite" | "positive" | "probability" => {
                if !self.is_empty() {
                    return Err(Error::new(name.span(), "a field states one range"));
                }
                self.word = Some(name);
                return Ok(true);
            }
            "at_least" => &mut self.at_least,
            "above" => &mut self.above,
            "at_most" => &mut self.at_most,
            "below" => &mut self.below,
            _ => return Ok(false),
        };
        *bound = Some(meta.value()?.parse()?);
        if self.word.is_some() {
            return Err(Error::new(name.span(), "a field states one range"));
        }
        Ok(true)
    }

    pub(crate) fn is_empty(&self) -> bool {
        let bounds = [&self.at_least, &self.above, &self.at_most, &self.below];
        self.word.is_none() && bounds.iter().all(|bound| bound.is_none())
    }

    /// The condition on `value` and its words; none where every value will do.
    pub(crate) fn check(&self, number: Number) -> Result<Option<(TokenStream, String)>> {
        let whole = number == Number::Whole;
        if let Some(word) = &self.word {
            let checked = match word.to_string().as_str() {
                "any" if whole => return Ok(None),
                "any" => {
                    let reason = "say `finite`: no field means anything as NaN or infinity";
                    return Err(Error::new(word.span(), reason));
                }
                _ if whole => {
                    let reason = format!("`{word}` is for floats; say `at_least = 1` or `any`");
                    return Err(Error::new(word.span(), reason));
                }
                "finite" => (quote!(value.is_finite()), "a finite number"),
                "positive" => (
                    quote!(value.is_finite() && value > 0.0),
                    "a finite number above 0",
                ),
                _ => (quote!((0.0..1.0).contains(&value)), "in [0, 1)"),
            };
            return Ok(Some((checked.0, checked.1.into())));
        }
        let mut conditions = Vec::new();
        if !whole {
            conditions.push(quote!(value.is_finite()));
        }
        // As one writes it by hand: linters look at what is generated, too.
        if let (Some(low), Some(high)) = (&self.at_least, &self.at_most) {
            conditions.push(quote!((#low..=#high).contains(&value)));
        } else if let (Some(low), Some(high)) = (&self.at_least, &self.below) {
            conditions.push(quote!((#low..#high).contains(&value)));
        } else {
            for (bound, sign) in [
                (&self.at_least, quote!(>=)),
                (&self.above, quote!(>)),
                (&self.at_most, quote!(<=)),
                (&self.below, quote!(<)),
            ] {
                if let Some(bound) = bound {
                    conditions.push(quote!(value #sign #bound));
                }
            }
        }
        Ok(Some((quote!(#(#conditions)&&*), self.words(whole))))
    }

    fn words(&self, whole: bool) -> String {
        let low = match (&self.at_least, &self.above) {
            (Some(bound), _) => Some(("at least", text(bound))),
            (None, Some(bound)) => Some(("above", text(bound))),
            (None, None) => None,
        };
        let high = match (&self.at_most, &self.below) {
            (Some(bound), _) => Some(("at most", text(bound))),
            (None, Some(bound)) => Some(("below", text(bound))),
            (None, None) => None,
        };
        match (low, high) {
            (Some(("at least", low)), Some(("at most", high))) => format!("from {low} to {high}"),
            (Some((word, low)), Some((other, high))) => format!("{word} {low} and {other} {high}"),
            (Some((word, bound)), None) | (None, Some((word, bound))) if whole => {
                format!("{word} {bound}")
            }
            (Some(("at least", bound)), None) => format!("a finite number of at least {bound}"),
            (Some((word, bound)), None) | (None, Some((word, bound))) => {
                format!("a finite number {word} {bound}")
            }
            (None, None) => String::new(),
        }
    }

    /// What documentation says of it behind the default; nothing of every number.
    pub(crate) fn documentation(&self) -> String {
        let words = match &self.word {
            Some(word) if word == "positive" => "above 0".into(),
            Some(word) if word == "probability" => "in [0, 1)".into(),
            Some(_) => String::new(),
            None => self.words(true),
        };
        if words.is_empty() {
            words
        } else {
            format!("; {words}")
        }
    }
}

/// A number as text.
pub(crate) fn text(number: &Expr) -> String {
    let text = quote!(#number).to_string().replace("- ", "-");
    text.strip_suffix(".0").unwrap_or(&text).to_string()
}

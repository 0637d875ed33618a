//! A field of a configuration: what its attribute says, and what is written for it.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::spanned::Spanned as _;
use syn::{
    Attribute, Error, Expr, ExprLit, Field, GenericArgument, Ident, Lit, LitStr, Path,
    PathArguments, Result, Type, parse_quote,
};

use crate::builders;
use crate::range::{Number, Range};

/// What kind of value a field holds.
pub(crate) enum Kind {
    /// A number, or an optional one.
    Number {
        number: Number,
        optional: bool,
    },
    /// Numbers by layer.
    ByLayer {
        number: Number,
        inner: Type,
    },
    /// An optional value of another type.
    Optional(Type),
    Bool,
    Other,
}

/// Arguments without a value, but for those of the range.
const FLAGS: [&str; 4] = ["flatten", "skip", "skip_false", "no_builder"];

/// Types of peft-core whose fields are keys of the outer object, and whose builders come with them.
const FLATTENED: [&str; 2] = ["Targets", "Common"];

/// A field as its attribute describes it.
pub(crate) struct ConfigField {
    pub(crate) name: Ident,
    pub(crate) ty: Type,
    pub(crate) kind: Kind,
    pub(crate) default: Option<Expr>,
    pub(crate) range: Range,
    rename: Option<LitStr>,
    deserialize_with: Option<LitStr>,
    /// Those of `FLAGS` that it has.
    flags: Vec<String>,
}

impl ConfigField {
    /// Reads `#[field(…)]`, and puts serde's attributes in its place.
    pub(crate) fn take(field: &mut Field) -> Result<Self> {
        let Some(name) = field.ident.clone() else {
            return Err(Error::new(field.span(), "a configuration has named fields"));
        };
        let mut found = Self {
            kind: Kind::of(&field.ty),
            name,
            ty: field.ty.clone(),
            default: None,
            range: Range::default(),
            rename: None,
            deserialize_with: None,
            flags: Vec::new(),
        };
        for attribute in take(&mut field.attrs, "field") {
            attribute.parse_nested_meta(|meta| {
                let argument = meta.path.require_ident()?.to_string();
                match argument.as_str() {
                    "default" => found.default = Some(meta.value()?.parse()?),
                    "rename" => found.rename = Some(meta.value()?.parse()?),
                    "deserialize_with" => found.deserialize_with = Some(meta.value()?.parse()?),
                    flag if FLAGS.contains(&flag) => found.flags.push(argument),
                    _ if found.range.read(&meta)? => {}
                    _ => return Err(meta.error(format!("`{argument}` is no argument of `field`"))),
                }
                Ok(())
            })?;
        }
        if FLATTENED.iter().any(|name| found.is_called(name)) {
            found.flags.push("flatten".into());
        }
        found.check()?;
        field.attrs.extend(found.serde_attributes());
        Ok(found)
    }

    /// Whether its type has this name.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        last(&self.ty).is_some_and(|(found, _)| found == name)
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|found| found == flag)
    }

    fn check(&self) -> Result<()> {
        let name = &self.name;
        let refuse = |reason: String| Err(Error::new(name.span(), reason));
        match self.kind {
            Kind::Number { .. } | Kind::ByLayer { .. } if self.range.is_empty() => refuse(format!(
                "`{name}` is a number: state its range, as in `#[field(at_least = 1)]`; or `positive`, \
                     `probability`, `finite`, `any`"
            )),
            Kind::Number { number, .. } | Kind::ByLayer { number, .. } => {
                self.range.check(number).map(|_| ())
            }
            _ if !self.range.is_empty() => {
                refuse(format!("`{name}` is no number, and has no range"))
            }
            Kind::Bool => Ok(()),
            _ if self.has("skip_false") => {
                refuse(format!("`skip_false` is for a bool, and `{name}` is none"))
            }
            _ => Ok(()),
        }
    }

    fn serde_attributes(&self) -> Vec<Attribute> {
        let mut attributes = Vec::new();
        if self.has("flatten") {
            attributes.push(parse_quote!(#[serde(flatten)]));
        }
        if self.has("skip") {
            attributes.push(parse_quote!(#[serde(skip)]));
        }
        if let Some(key) = &self.rename {
            attributes.push(parse_quote!(#[serde(rename = #key)]));
        }
        if let Some(function) = &self.deserialize_with {
            attributes.push(parse_quote!(#[serde(deserialize_with = #function)]));
        }
        if self.has("skip_false") {
            attributes.push(parse_quote!(#[serde(skip_serializing_if = "std::ops::Not::not")]));
        }
        attributes
    }

    /// Its key in JSON.
    fn key(&self) -> String {
        match &self.rename {
            Some(key) => key.value(),
            None => self.name.to_string(),
        }
    }

    /// Its value in `Default`.
    pub(crate) fn default_value(&self) -> TokenStream {
        match &self.default {
            Some(
                text @ Expr::Lit(ExprLit {
                    lit: Lit::Str(_), ..
                }),
            ) => quote!(#text.into()),
            Some(value) => quote!(#value),
            None => quote!(::core::default::Default::default()),
        }
    }

    /// The type and the value of an argument that sets it.
    pub(crate) fn argument(&self) -> (TokenStream, TokenStream) {
        let (name, ty) = (&self.name, &self.ty);
        match &self.kind {
            Kind::Number {
                optional: false, ..
            }
            | Kind::Bool => (quote!(#ty), quote!(#name)),
            Kind::Number { .. } => {
                let inner = inner(ty);
                (quote!(#inner), quote!(::core::option::Option::Some(#name)))
            }
            Kind::Optional(inner) => (
                quote!(impl ::core::convert::Into<#inner>),
                quote!(::core::option::Option::Some(#name.into())),
            ),
            Kind::ByLayer { .. } | Kind::Other => (
                quote!(impl ::core::convert::Into<#ty>),
                quote!(#name.into()),
            ),
        }
    }

    /// `with_<field>`.
    pub(crate) fn builder(&self) -> TokenStream {
        let name = &self.name;
        if self.has("no_builder") {
            return TokenStream::new();
        }
        if self.is_called("Targets") {
            return builders::of_targets(name);
        }
        if self.is_called("Common") {
            return builders::of_common(name);
        }
        if self.has("flatten") {
            return TokenStream::new();
        }
        let builder = format_ident!("with_{name}");
        if let Kind::ByLayer { inner, .. } = &self.kind {
            let doc = format!(
                "Adds a value to [`{name}`](Self::{name}), for layers whose name ends in `pattern`, a regular expression."
            );
            return quote! {
                #[doc = #doc]
                #[must_use]
                pub fn #builder(mut self, pattern: &str, value: #inner) -> Self {
                    self.#name.insert(pattern, value);
                    self
                }
            };
        }
        let (ty, value) = self.argument();
        let doc = format!("Sets [`{name}`](Self::{name}).");
        quote! {
            #[doc = #doc]
            #[must_use]
            pub fn #builder(mut self, #name: #ty) -> Self {
                self.#name = #value;
                self
            }
        }
    }

    /// The check of its range.
    pub(crate) fn range_check(&self) -> Result<TokenStream> {
        let (name, key) = (&self.name, self.key());
        let number = match &self.kind {
            Kind::Number { number, .. } | Kind::ByLayer { number, .. } => *number,
            _ => return Ok(TokenStream::new()),
        };
        let checked = self.range.check(number)?;
        if let Kind::ByLayer { inner, .. } = &self.kind {
            let (condition, words) = match checked {
                Some((condition, words)) if number == Number::Whole => {
                    (condition, format!("a whole number of {words}"))
                }
                Some(checked) => checked,
                None => (quote!(true), "a whole number".into()),
            };
            return Ok(quote! {
                self.#name.check(info, #key, #words, |value: #inner| #condition)?;
            });
        }
        let Some((condition, words)) = checked else {
            return Ok(TokenStream::new());
        };
        if let Kind::Number { optional: true, .. } = self.kind {
            let ty = inner(&self.ty);
            return Ok(quote! {
                if let Some(value) = self.#name {
                    ::peft_core::method::check_field(info, #key, value, #words, |value: #ty| #condition)?;
                }
            });
        }
        let ty = &self.ty;
        Ok(quote! {
            ::peft_core::method::check_field(info, #key, self.#name, #words, |value: #ty| #condition)?;
        })
    }

    /// For patterns by layer: the refusal of those that fit none.
    pub(crate) fn layer_check(&self) -> Option<TokenStream> {
        let (name, key) = (&self.name, self.key());
        matches!(self.kind, Kind::ByLayer { .. })
            .then(|| quote!(self.#name.refuse_unused(info, #key, layers)?;))
    }
}

impl Kind {
    fn of(ty: &Type) -> Self {
        let Some((name, arguments)) = last(ty) else {
            return Self::Other;
        };
        let inner_number = || {
            arguments
                .and_then(last)
                .and_then(|(name, _)| Number::of(name))
        };
        match (name.to_string().as_str(), arguments) {
            ("bool", None) => Self::Bool,
            ("Option", Some(inner)) => match inner_number() {
                Some(number) => Self::Number {
                    number,
                    optional: true,
                },
                None => Self::Optional(inner.clone()),
            },
            ("ByLayer", Some(inner)) => match inner_number() {
                Some(number) => Self::ByLayer {
                    number,
                    inner: inner.clone(),
                },
                None => Self::Other,
            },
            (_, None) => match Number::of(name) {
                Some(number) => Self::Number {
                    number,
                    optional: false,
                },
                None => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// The attributes called `name`, taken out.
pub(crate) fn take(attributes: &mut Vec<Attribute>, name: &str) -> Vec<Attribute> {
    attributes
        .extract_if(.., |attribute| attribute.path().is_ident(name))
        .collect()
}

/// The last segment of a type's path, and its first type argument.
pub(crate) fn last(ty: &Type) -> Option<(&Ident, Option<&Type>)> {
    let Type::Path(path) = ty else {
        return None;
    };
    let path: &Path = &path.path;
    let segment = path.segments.last()?;
    let argument = match &segment.arguments {
        PathArguments::AngleBracketed(arguments) => {
            arguments.args.iter().find_map(|argument| match argument {
                GenericArgument::Type(ty) => Some(ty),
                _ => None,
            })
        }
        _ => None,
    };
    Some((&segment.ident, argument))
}

/// `T` of an `Option<T>`.
fn inner(ty: &Type) -> &Type {
    last(ty).and_then(|(_, inner)| inner).unwrap_or(ty)
}

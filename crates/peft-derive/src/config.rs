//! A method's configuration: what its attribute says, and what is written besides the struct.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::meta::{self, ParseNestedMeta};
use syn::parse::Parser as _;
use syn::punctuated::Punctuated;
use syn::{Error, Expr, Ident, ItemStruct, LitStr, Result, Token, parenthesized, parse_quote};

use crate::documentation;
use crate::field::{ConfigField, take};

/// The arguments of `method_config`.
#[derive(Default)]
struct Arguments {
    registration: Option<Ident>,
    name: Option<LitStr>,
    peft_type: Option<LitStr>,
    title: Option<LitStr>,
    family: Option<Ident>,
    reference: Option<LitStr>,
    identity_at_init: bool,
    mergeable: bool,
    new: Option<Vec<Ident>>,
    unsupported: Vec<LitStr>,
    parse: Option<Expr>,
    recognises: Option<Expr>,
    info: Option<Expr>,
    to_json: Option<Expr>,
}

impl Arguments {
    fn read(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let name = meta.path.require_ident()?;
        match name.to_string().as_str() {
            "name" => self.name = Some(meta.value()?.parse()?),
            "peft_type" => self.peft_type = Some(meta.value()?.parse()?),
            "title" => self.title = Some(meta.value()?.parse()?),
            "family" => self.family = Some(meta.value()?.parse()?),
            "reference" => self.reference = Some(meta.value()?.parse()?),
            "identity_at_init" => self.identity_at_init = true,
            "mergeable" => self.mergeable = true,
            "new" => self.new = Some(list(meta)?),
            "unsupported" => self.unsupported = list(meta)?,
            "parse" => self.parse = Some(meta.value()?.parse()?),
            "recognises" => self.recognises = Some(meta.value()?.parse()?),
            "info" => self.info = Some(meta.value()?.parse()?),
            "to_json" => self.to_json = Some(meta.value()?.parse()?),
            text if text.to_uppercase() == text => self.registration = Some(name.clone()),
            text => return Err(meta.error(format!("`{text}` is no argument of `method_config`"))),
        }
        Ok(())
    }

    /// The static, where there is one.
    fn registration(&self, config: &Ident) -> Result<TokenStream> {
        let Some(registration) = &self.registration else {
            return match &self.info {
                Some(_) => Ok(TokenStream::new()),
                None => Err(Error::new(
                    config.span(),
                    "say how the registration is called, as in `#[method_config(LORA, …)]`",
                )),
            };
        };
        let missing = |what: &str| {
            let reason = format!("`{registration}` needs `{what} = …`");
            Error::new(registration.span(), reason)
        };
        let peft_type = self
            .peft_type
            .as_ref()
            .ok_or_else(|| missing("peft_type"))?;
        let title = self.title.as_ref().ok_or_else(|| missing("title"))?;
        let family = self.family.as_ref().ok_or_else(|| missing("family"))?;
        let reference = self
            .reference
            .as_ref()
            .ok_or_else(|| missing("reference"))?;
        let name = match &self.name {
            Some(name) => name.value(),
            None => peft_type.value().to_lowercase().replace('_', "-"),
        };
        let (identity_at_init, mergeable) = (self.identity_at_init, self.mergeable);
        let doc = format!("{}'s registration.", title.value());
        let own: Expr = parse_quote!(::peft_core::method::config_from_json::<#config>);
        let parse = self.parse.as_ref().unwrap_or(&own);
        let recognises = self.recognises.as_ref().map_or_else(
            || quote!(::core::option::Option::None),
            |function| quote!(::core::option::Option::Some(#function)),
        );
        Ok(quote! {
            #[doc = #doc]
            pub static #registration: ::peft_core::method::MethodInfo = ::peft_core::method::MethodInfo {
                name: #name,
                peft_type: #peft_type,
                title: #title,
                family: ::peft_core::method::Family::#family,
                reference: #reference,
                identity_at_init: #identity_at_init,
                mergeable: #mergeable,
                parse: #parse,
                recognises: #recognises,
            };
        })
    }

    /// `new`, of the fields that it takes.
    fn constructor(&self, fields: &[ConfigField]) -> Result<TokenStream> {
        let Some(names) = &self.new else {
            return Ok(TokenStream::new());
        };
        let mut arguments = Vec::new();
        let mut values = Vec::new();
        for name in names {
            let Some(field) = fields.iter().find(|field| field.name == *name) else {
                let reason = format!("`new` names `{name}`, which is no field");
                return Err(Error::new(name.span(), reason));
            };
            let (ty, value) = field.argument();
            arguments.push(quote!(#name: #ty));
            values.push(quote!(#name: #value));
        }
        let listed: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let doc = match listed.len() {
            0 => "Every field has its default.".to_string(),
            _ => format!(
                "With this {}; other fields have their defaults.",
                listed.join(", ")
            ),
        };
        Ok(quote! {
            #[doc = #doc]
            pub fn new(#(#arguments),*) -> Self {
                Self { #(#values,)* ..Self::default() }
            }
        })
    }
}

/// `name(a, b)`.
fn list<T: syn::parse::Parse>(meta: &ParseNestedMeta<'_>) -> Result<Vec<T>> {
    let content;
    parenthesized!(content in meta.input);
    let items = Punctuated::<T, Token![,]>::parse_terminated(&content)?;
    Ok(items.into_iter().collect())
}

/// The struct without the attributes of its fields.
pub(crate) fn plain(mut item: ItemStruct) -> ItemStruct {
    for field in &mut item.fields {
        take(&mut field.attrs, "field");
    }
    item
}

pub(crate) fn expand(arguments: TokenStream, mut item: ItemStruct) -> Result<TokenStream> {
    let mut given = Arguments::default();
    meta::parser(|meta| given.read(&meta)).parse2(arguments)?;
    let config = item.ident.clone();
    let mut fields = Vec::new();
    let mut wrong: Option<Error> = None;
    for field in &mut item.fields {
        match ConfigField::take(field) {
            Ok(found) => {
                documentation::complete(&found, &mut field.attrs);
                fields.push(found);
            }
            Err(error) => match &mut wrong {
                Some(errors) => errors.combine(error),
                None => wrong = Some(error),
            },
        }
    }
    if let Some(errors) = wrong {
        return Err(errors);
    }
    if !fields.iter().any(|field| field.name == "common") {
        let reason = "a configuration has a field `pub common: Common`";
        return Err(Error::new(config.span(), reason));
    }
    item.attrs.push(parse_quote! {
        #[derive(
            Clone, Debug, PartialEq,
            ::peft_core::method::serde::Serialize, ::peft_core::method::serde::Deserialize
        )]
    });
    item.attrs.push(parse_quote! {
        #[allow(clippy::struct_excessive_bools, reason = "a configuration has upstream's switches")]
    });
    item.attrs
        .push(parse_quote!(#[serde(default, crate = "::peft_core::method::serde")]));
    let registration = given.registration(&config)?;
    let constructor = given.constructor(&fields)?;
    let builders = fields.iter().map(ConfigField::builder);
    let defaults = fields.iter().map(|field| {
        let (name, value) = (&field.name, field.default_value());
        quote!(#name: #value)
    });
    let contract = contract(&given, &config, &fields)?;
    Ok(quote! {
        #item
        #registration
        impl ::core::default::Default for #config {
            fn default() -> Self {
                Self { #(#defaults),* }
            }
        }
        impl #config {
            #constructor
            #(#builders)*
        }
        #contract
    })
}

/// The implementation of `MethodConfig`.
fn contract(given: &Arguments, config: &Ident, fields: &[ConfigField]) -> Result<TokenStream> {
    let info = match (&given.info, &given.registration) {
        (Some(function), _) => quote!(#function(self)),
        (None, Some(registration)) => quote!(&#registration),
        (None, None) => return Err(Error::new(Span::call_site(), "no registration")),
    };
    let upstreams: Expr = parse_quote!(::peft_core::method::upstream_json);
    let to_json = given.to_json.as_ref().unwrap_or(&upstreams);
    let mut checks = Vec::new();
    for field in fields {
        checks.push(field.range_check()?);
    }
    let unsupported = &given.unsupported;
    if !unsupported.is_empty() {
        checks.push(quote! {
            ::peft_core::method::refuse_unsupported(&self.common.unknown, info, &[#(#unsupported),*])?;
        });
    }
    let bind = |checks: &[TokenStream]| {
        let used = checks.iter().any(|check| !check.is_empty());
        used.then(|| quote!(let info = ::peft_core::method::MethodConfig::info(self);))
    };
    let bound = bind(&checks);
    let layers: Vec<_> = fields.iter().filter_map(ConfigField::layer_check).collect();
    let check_layers = (!layers.is_empty()).then(|| {
        quote! {
            fn check_layers(&self, layers: &[&str]) -> ::peft_core::Result<()> {
                let info = ::peft_core::method::MethodConfig::info(self);
                #(#layers)*
                Ok(())
            }
        }
    });
    let has = |name: &str| fields.iter().any(|field| field.name == name);
    let targets = has("targets").then(|| {
        quote! {
            fn targets(&self) -> ::core::option::Option<&::peft_core::Targets> {
                ::core::option::Option::Some(&self.targets)
            }
        }
    });
    let bias = has("bias").then(|| {
        quote! {
            fn bias(&self) -> ::peft_core::method::Bias {
                self.bias
            }
        }
    });
    Ok(quote! {
        impl ::peft_core::method::MethodConfig for #config {
            fn info(&self) -> &'static ::peft_core::method::MethodInfo {
                #info
            }
            fn common(&self) -> &::peft_core::method::Common {
                &self.common
            }
            fn common_mut(&mut self) -> &mut ::peft_core::method::Common {
                &mut self.common
            }
            fn check_fields(&self) -> ::peft_core::Result<()> {
                #bound
                #(#checks)*
                Ok(())
            }
            #check_layers
            #targets
            #bias
            fn to_json(&self) -> ::peft_core::method::Value {
                #to_json(self)
            }
            fn boxed(&self) -> ::std::boxed::Box<dyn ::peft_core::method::Method> {
                ::std::boxed::Box::new(self.clone())
            }
        }
    })
}

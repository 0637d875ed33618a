//! An adapter's state: the key of each tensor.

use proc_macro2::TokenStream;
use quote::quote;
use syn::spanned::Spanned as _;
use syn::{Attribute, Data, DeriveInput, Error, Field, Fields, Ident, LitStr, Result, Type};

use crate::field::last;
use crate::range::Number;

/// What `#[tensor(…)]` says.
#[derive(Default)]
struct Tensor {
    layer: Option<LitStr>,
    named: Option<LitStr>,
    root: Option<LitStr>,
    also: Option<LitStr>,
    saved_if: Option<Ident>,
    adapterhub: Option<LitStr>,
    transposed: bool,
    sparse: bool,
}

impl Tensor {
    fn read(attribute: &Attribute) -> Result<Self> {
        let mut found = Self::default();
        attribute.parse_args_with(|input: syn::parse::ParseStream<'_>| {
            if input.peek(LitStr) {
                found.layer = Some(input.parse()?);
                if input.is_empty() {
                    return Ok(());
                }
                input.parse::<syn::Token![,]>()?;
            }
            syn::meta::parser(|meta| {
                let argument = meta.path.require_ident()?.to_string();
                match argument.as_str() {
                    "named" => found.named = Some(meta.value()?.parse()?),
                    "root" => found.root = Some(meta.value()?.parse()?),
                    "also" => found.also = Some(meta.value()?.parse()?),
                    "adapterhub" => found.adapterhub = Some(meta.value()?.parse()?),
                    "saved_if" => found.saved_if = Some(meta.value()?.parse()?),
                    "transposed" => found.transposed = true,
                    "sparse" => found.sparse = true,
                    _ => return Err(meta.error(format!("`{argument}` is no argument of `tensor`"))),
                }
                Ok(())
            })
            .parse2_rest(input)
        })?;
        Ok(found)
    }

    fn expand(&self, attribute: &Attribute, field: &str) -> Result<TokenStream> {
        let (kind, key) = match (&self.layer, &self.named, &self.root) {
            (Some(key), None, None) => (quote!(layer), key),
            (None, Some(key), None) => (quote!(named), key),
            (None, None, Some(key)) => (quote!(root), key),
            _ => {
                let reason = "one key: `\"below the layer\"`, `named = \"…\"` or `root = \"…\"`";
                return Err(Error::new(attribute.span(), reason));
            }
        };
        let transposed = self.transposed.then(|| quote!(.transposed()));
        let sparse = self.sparse.then(|| quote!(.sparse()));
        let also = self.also.as_ref().map(|key| quote!(.also(#key)));
        let adapterhub = self.adapterhub.as_ref().map(|key| {
            quote! {
                .in_adapterhub(
                    ::peft_core::method::CheckpointKey::#kind(#field, #key) #transposed
                )
            }
        });
        let saved = quote!(::peft_core::method::CheckpointKey::#kind(#field, #key) #transposed #sparse #also #adapterhub);
        Ok(match &self.saved_if {
            None => quote!(::std::vec![#saved]),
            Some(condition) => quote! {
                ::std::vec![if self.#condition {
                    #saved
                } else {
                    ::peft_core::method::CheckpointKey::unsaved(#field)
                }]
            },
        })
    }
}

/// Parses the rest of an attribute's arguments.
trait ParseRest {
    fn parse2_rest(self, input: syn::parse::ParseStream<'_>) -> Result<()>;
}

impl<P: syn::parse::Parser<Output = ()>> ParseRest for P {
    fn parse2_rest(self, input: syn::parse::ParseStream<'_>) -> Result<()> {
        self.parse2(input.parse()?)
    }
}

/// Whether a field of this type may hold parameters. `Option` and `Vec` hold what is in them.
fn may_have_parameters(ty: &Type) -> bool {
    match (last(ty), ty) {
        (Some((name, Some(inner))), _) if name == "Option" || name == "Vec" => {
            may_have_parameters(inner)
        }
        (Some((name, _)), _) => {
            let plain = ["bool", "String", "Dropout", "Tensor"];
            Number::of(name).is_none() && !plain.iter().any(|plain| name == plain)
        }
        (None, Type::Array(array)) => may_have_parameters(&array.elem),
        _ => true,
    }
}

/// Whether Burn's derive is told to leave the field alone.
fn is_skipped(field: &Field) -> bool {
    field.attrs.iter().any(|attribute| {
        let mut skipped = false;
        if attribute.path().is_ident("module") {
            // What Burn cannot read, Burn refuses.
            let _ = attribute.parse_nested_meta(|meta| {
                skipped |= meta.path.is_ident("skip");
                Ok(())
            });
        }
        skipped
    })
}

fn tensors_of(field: &Field, name: &Ident) -> Result<TokenStream> {
    let text = name.to_string();
    let mut attributes = field.attrs.iter().filter(|attribute| {
        let known = ["tensor", "unsaved", "nested", "no_tensor"];
        known.iter().any(|known| attribute.path().is_ident(known))
    });
    let Some(attribute) = attributes.next() else {
        if is_skipped(field) || !may_have_parameters(&field.ty) {
            return Ok(TokenStream::new());
        }
        let reason = format!(
            "`{name}` may hold parameters: say how the file calls it, as in `#[tensor(\"{name}\")]`; or `#[unsaved]`, \
             `#[nested]`, `#[no_tensor]`"
        );
        return Err(Error::new(name.span(), reason));
    };
    if let Some(second) = attributes.next() {
        let reason = "one of `tensor`, `unsaved`, `nested` and `no_tensor`";
        return Err(Error::new(second.span(), reason));
    }
    if attribute.path().is_ident("tensor") {
        return Tensor::read(attribute)?.expand(attribute, &text);
    }
    if attribute.path().is_ident("unsaved") {
        return Ok(quote!(
            ::std::vec![::peft_core::method::CheckpointKey::unsaved(#text)]
        ));
    }
    if attribute.path().is_ident("no_tensor") {
        return Ok(TokenStream::new());
    }
    let nested = quote! {
        ::peft_core::method::Adapter::tensors(nested)
            .into_iter()
            .map(|key| key.within(#text))
            .collect()
    };
    let optional = last(&field.ty).is_some_and(|(name, _)| name == "Option");
    Ok(if optional {
        quote!(self.#name.as_ref().map_or_else(::std::vec::Vec::new, |nested| { #nested }))
    } else {
        quote!({ let nested = &self.#name; #nested })
    })
}

pub(crate) fn expand(item: &DeriveInput) -> Result<TokenStream> {
    let fields = match &item.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => &fields.named,
            _ => return Err(Error::new(item.span(), "a state has named fields")),
        },
        _ => return Err(Error::new(item.span(), "a state is a struct")),
    };
    let mut keys = Vec::new();
    let mut wrong: Option<Error> = None;
    for field in fields {
        let name = field.ident.as_ref().expect("named fields");
        match tensors_of(field, name) {
            Ok(tokens) if tokens.is_empty() => {}
            Ok(tokens) => keys.push(tokens),
            Err(error) => match &mut wrong {
                Some(errors) => errors.combine(error),
                None => wrong = Some(error),
            },
        }
    }
    if let Some(errors) = wrong {
        return Err(errors);
    }
    let (state, (generics, types, bounds)) = (&item.ident, item.generics.split_for_impl());
    Ok(quote! {
        impl #generics ::peft_core::method::Adapter for #state #types #bounds {
            fn tensors(&self) -> ::std::vec::Vec<::peft_core::method::CheckpointKey> {
                let of_fields: ::std::vec::Vec<::std::vec::Vec<::peft_core::method::CheckpointKey>> =
                    ::std::vec![#(#keys),*];
                of_fields.concat()
            }
        }
    })
}

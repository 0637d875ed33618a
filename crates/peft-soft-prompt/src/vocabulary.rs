//! Where a prompt goes, and the embedding table beside it.

use burn::module::Param;
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::method::{Layout, LayoutParam, LayoutSite, MethodInfo, SiteKind, TypedSite};
use peft_core::nn::Prompt;
use peft_core::{Error, Result};

/// Where a prompt of `tokens` goes: the model's one site for embeddings.
pub(crate) fn only_site<'a>(
    layout: &'a Layout,
    method: &'static MethodInfo,
    tokens: usize,
) -> Result<TypedSite<'a, Prompt>> {
    let mut sites = layout.prompt_sites();
    let Some(site) = sites.next() else {
        return Err(layout.no_site(method.title, SiteKind::Embeddings));
    };
    if sites.next().is_some() {
        let expected =
            "a model with one site for embeddings: the checkpoint has room for one prompt";
        return Err(Error::config(
            method.title,
            "num_virtual_tokens",
            tokens,
            expected,
        ));
    }
    Ok(site)
}

/// The embedding table whose output a site sees; `field` asks for it.
///
/// # Errors
///
/// [`Error::Config`] if the site names no table.
pub(crate) fn table<'a>(
    site: &LayoutSite,
    layout: &'a Layout,
    method: &'static MethodInfo,
    field: &'static str,
    value: impl std::fmt::Debug,
) -> Result<&'a LayoutParam> {
    let mut layers = layout.layers.iter();
    let layer = layers.find(|layer| layer.name == site.name);
    let table = layer.and_then(|layer| layout.param(layer, "weight"));
    table.ok_or_else(|| {
        let expected = "random values: the model's site names no embedding table to start from (see `Site::with_name`)";
        Error::config(method.title, field, value, expected)
    })
}

/// The embeddings of these tokens, `[tokens, d]`; `field` gives them.
///
/// # Errors
///
/// [`Error::Config`] if a token is beyond the table.
pub(crate) fn embeddings_of(
    tokens: &[u32],
    table: &LayoutParam,
    method: &'static MethodInfo,
    field: &'static str,
) -> Result<Param<Tensor<2>>> {
    let vocabulary = table.shape()[0];
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
        let expected = format!("below {vocabulary}, the model's vocabulary");
        return Err(Error::config(method.title, field, token, expected));
    }
    let rows: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
    let rows = TensorData::new(rows, [tokens.len()]);
    let rows = Tensor::<1, Int>::from_data(rows, &table.device());
    let embeddings = table.value::<2>().select(0, rows).detach();
    Ok(Param::from_tensor(embeddings))
}

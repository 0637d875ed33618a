//! What methods that put keys and values in front of a text's have in common.

use burn::tensor::{DType, Device, Tensor};
use peft_core::Result;
use peft_core::method::{Layout, LayoutSite, MethodInfo, Plan, SiteKind, TypedSite};
use peft_core::nn::KeyValue;

/// The sites of keys and values, at least one. They must be alike, as Hugging Face PEFT's files have no place for others.
pub(crate) fn alike_sites<'a>(
    layout: &'a Layout,
    method: &'static MethodInfo,
    tokens: usize,
) -> Result<Vec<TypedSite<'a, KeyValue>>> {
    let sites: Vec<_> = layout.key_value_sites().collect();
    let Some(first) = sites.first() else {
        return Err(layout.no_site(method.title, SiteKind::KeyValue));
    };
    let alike = |width, heads| width == first.width && heads == first.heads;
    if let Some(other) = sites.iter().find(|site| !alike(site.width, site.heads)) {
        let expected = format!(
            "a model whose attention layers are alike, as the checkpoint has room for such only: `{}` has {} \
             features in {} heads, `{}` {} in {}",
            first.name, first.width, first.heads, other.name, other.width, other.heads
        );
        return Err(method.refusal("num_virtual_tokens", tokens, expected));
    }
    Ok(sites)
}

/// Keys and values of the first tokens of a text, side by side, `[tokens, 2 · kv]`, where the adapter is attached with
/// such.
pub(crate) fn of_text(
    site: &LayoutSite,
    plan: &Plan,
    method: &'static MethodInfo,
    tokens: usize,
    (device, dtype): (&Device, DType),
) -> Result<Option<Tensor<2>>> {
    let found = plan.calibration();
    let found = found
        .map(|found| found.key_values(&site.name))
        .transpose()?;
    let Some((key, value)) = found.flatten() else {
        return Ok(None);
    };
    let [given, _] = key.dims();
    if given < tokens {
        let expected = format!("at most {given}, as many tokens as the text has");
        return Err(method.refusal("num_virtual_tokens", tokens, expected));
    }
    let both = Tensor::cat(vec![key, value], 1).narrow(0, 0, tokens);
    let data = both.into_data().convert_dtype(dtype);
    Ok(Some(Tensor::from_data(data, (device, dtype))))
}

/// Refuses what upstream's files may say of models that have an encoder and a decoder; `parts` are what the method adds.
pub(crate) fn check_submodules(
    method: &'static MethodInfo,
    submodules: Option<usize>,
    parts: &str,
) -> Result<()> {
    if submodules.is_none_or(|count| count == 1) {
        return Ok(());
    }
    let expected = format!("1: {parts} of encoder and decoder together are not supported");
    Err(method.refusal("num_transformer_submodules", submodules, expected))
}

/// Keys and values of one tensor with both side by side.
pub(crate) fn halves(both: &Tensor<2>) -> [Tensor<2>; 2] {
    let [_, width] = both.dims();
    [0..width / 2, width / 2..width].map(|part| both.clone().slice_dim(1, part))
}

/// Records what only the model tells, in upstream's fields.
pub(crate) fn record(sites: &[TypedSite<'_, KeyValue>], plan: &mut Plan) {
    let Some(first) = sites.first() else { return };
    plan.set_config_field("token_dim", first.width);
    plan.set_config_field("num_attention_heads", first.heads);
    plan.set_config_field("num_layers", sites.len());
    plan.set_config_field("num_transformer_submodules", 1);
}

//! What methods have in common: which layers they adapt, which biases they train, values by pattern.

use crate::error::{Error, Result};
use crate::layout::model_layout::{Layer, LayerKind, Layout, LayoutParam};
use crate::layout::targets::{ALL_LINEAR, Selection, Targets};
use crate::method::bias::Bias;
use crate::method::contract::MethodInfo;
use crate::method::plan::Plan;
use serde_json::{Map, Value};

/// A layer with the weight that is to be adapted.
pub(crate) type Target<'a> = (&'a Layer, &'a LayoutParam);

/// The layers that a configuration names, `all-linear` if it names none, with their weights; without
/// those that are saved whole.
///
/// # Errors
///
/// As [`Targets::select`], and [`Error::UnsupportedLayer`] for a layer of another kind than `kinds`.
pub(crate) fn select<'a>(
    targets: &Targets,
    layout: &'a Layout,
    plan: &Plan,
    info: &MethodInfo,
    kinds: &[LayerKind],
) -> Result<Vec<Target<'a>>> {
    let default = Selection::from(ALL_LINEAR);
    let layers = targets.select(layout, info.title, &default, plan.is_new())?;
    let mut found = Vec::with_capacity(layers.len());
    for layer in layers {
        let weight = layout
            .param(layer, "weight")
            .filter(|_| kinds.contains(&layer.kind));
        let Some(weight) = weight else {
            return Err(Error::UnsupportedLayer {
                method: info.title,
                layer: layer.name.clone(),
                kind: layer.kind.to_string(),
                supported: listed(kinds),
            });
        };
        if !plan.is_saved(weight) {
            found.push((layer, weight));
        }
    }
    Ok(found)
}

/// Kinds as a sentence names them: `Linear, Conv1d and Conv2d`.
fn listed(kinds: &[LayerKind]) -> String {
    let names: Vec<_> = kinds.iter().map(LayerKind::to_string).collect();
    match names.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => names.concat(),
    }
}

/// Linear layers.
pub(crate) const LINEAR: &[LayerKind] = &[LayerKind::Linear];

/// Linear layers and convolutions of one and of two axes, for [`layer_targets`](crate::method::layer_targets).
pub const LINEAR_AND_CONV: &[LayerKind] =
    &[LayerKind::Linear, LayerKind::Conv1d, LayerKind::Conv2d];

/// The same and embedding tables, for [`layer_targets`](crate::method::layer_targets).
pub const LINEAR_EMBEDDING_AND_CONV: &[LayerKind] = &[
    LayerKind::Linear,
    LayerKind::Embedding,
    LayerKind::Conv1d,
    LayerKind::Conv2d,
];

/// Plans the training of biases; `adapted` are the layers that the method adapts, with their weights.
pub fn train_biases(
    bias: Bias,
    layout: &Layout,
    adapted: &[(&Layer, &LayoutParam)],
    plan: &mut Plan,
) {
    let is_bias = |param: &&LayoutParam| param.field() == "bias" && param.shape().len() == 1;
    for param in layout.params.iter().filter(is_bias) {
        let layer = layout.layer_of(param);
        let is_adapted = adapted
            .iter()
            .any(|(adapted, _)| adapted.name == layer.name);
        if bias == Bias::All || (bias == Bias::Adapted && is_adapted) {
            // Upstream wraps an adapted layer, and its bias moves into the wrapper.
            let key = is_adapted.then(|| format!("{}.base_layer.bias", layer.name));
            plan.train_bias(param, key, None);
        }
    }
}

/// Refuses fields of upstream's that change what a checkpoint means and are not supported, unless
/// they are off.
///
/// # Errors
///
/// [`Error::Config`] naming the first.
pub fn refuse_unsupported(
    unknown: &Map<String, Value>,
    info: &MethodInfo,
    fields: &[&'static str],
) -> Result<()> {
    for field in fields {
        let value = unknown.get(*field).unwrap_or(&Value::Null);
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        if !off {
            let expected = "leave it out: this is not supported yet";
            return Err(Error::config(
                info.title,
                field,
                format_args!("{value}"),
                expected,
            ));
        }
    }
    Ok(())
}

//! A LoRA out of the difference between two models.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use peft_core::method::{LayerKind, LayoutParam};
use peft_core::{Error, PeftModule, Result, Selection, Targets};

use crate::combine_error::CombineError;
use crate::lora::config::LORA;
use crate::lora::fixed_factors::{Kind, LoraFromFactors, factored, plain};

/// How well a layer's extracted factors give its change back.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Extracted {
    /// The layer.
    pub layer: String,
    /// The rank of its factors.
    pub rank: usize,
    /// The share of the change's Frobenius norm that they miss, from 0 to 1.
    pub error: f64,
}

/// Makes a LoRA of the difference between two models: the best approximation of the given rank to what
/// fine-tuning changed, layer by layer, by singular values. It is attached to `base` as `name`.
///
/// `targets` are the layers, as in a configuration; of those only linear and embedding layers and
/// convolutions can be. What else differs between the models is not looked at. Adapters
/// on either model are not either: `merge_and_unload` them first.
///
/// # Errors
///
/// [`CombineError`] in [`Error::Method`] for a layer that `tuned` lacks or has in another shape, or that is not finite; and
/// what [`PeftModule::attach`] refuses.
pub fn extract_lora<M: PeftModule>(
    base: &M,
    tuned: &M,
    name: &str,
    rank: usize,
    targets: impl Into<Selection>,
) -> Result<(M, Vec<Extracted>)> {
    if rank == 0 {
        return Err(Error::config(LORA.title, "r", rank, "at least 1"));
    }
    let (before, after) = (base.layout(), tuned.layout());
    let targets = Targets {
        target_modules: Some(targets.into()),
        ..Targets::default()
    };
    let mut factors = BTreeMap::new();
    let mut report = Vec::new();
    let all = Selection::from("all-linear");
    for layer in targets.select(&before, LORA.title, &all, true)? {
        let refuse = |reason: &str| CombineError::refuse(&layer.name, reason);
        let weight = before
            .param(layer, "weight")
            .ok_or_else(|| refuse("the layer has no weight"))?;
        let other = after
            .params
            .iter()
            .find(|param| param.name == weight.name)
            .filter(|other| other.shape() == weight.shape())
            .ok_or_else(|| refuse("the tuned model has no such layer of that shape"))?;
        let (kind, change) = match layer.kind {
            LayerKind::Linear => (Kind::Linear, difference::<2>(weight, other)),
            LayerKind::Embedding => (Kind::Embedding, difference::<2>(weight, other)),
            LayerKind::Conv1d => {
                let shape = weight.shape();
                let kind = Kind::Conv2d([shape[1], shape[2], 1]);
                (kind, difference::<3>(weight, other))
            }
            LayerKind::Conv2d => {
                let shape = weight.shape();
                let kind = Kind::Conv2d([shape[1], shape[2], shape[3]]);
                (kind, difference::<4>(weight, other))
            }
            _ => {
                return Err(Error::UnsupportedLayer {
                    method: LORA.title,
                    layer: layer.name.clone(),
                    kind: layer.kind.to_string(),
                    supported: "Linear, Embedding, Conv1d and Conv2d".into(),
                });
            }
        };
        let (found, error) = factored(kind, change, rank)
            .ok_or_else(|| refuse("the difference has no singular values; is it finite?"))?;
        report.push(Extracted {
            layer: layer.name.clone(),
            rank: found.rank(),
            error,
        });
        factors.insert(layer.name.clone(), found);
    }
    Ok((
        base.attach(name, &LoraFromFactors::new(factors, &before))?,
        report,
    ))
}

/// The change of a weight, with one axis for all but the first.
fn difference<const D: usize>(before: &LayoutParam, after: &LayoutParam) -> Tensor<2> {
    let rows = before.shape()[0];
    let change = plain(after.value::<D>()) - plain(before.value::<D>());
    change.reshape([rows as isize, -1])
}

//! Intruder dimensions: directions that training brought into a weight and that its base does not know.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule, Result};

use crate::combine::weighted::Adapter;
use crate::combine_error::CombineError;
use crate::lora::config::LORA;
use crate::lora::fixed_factors::{Factors, Kind, LoraFromFactors, factored, missing, plain};
use crate::math::linalg::{Svd, svd};

/// What counts as an intruder, and how much of it stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntruderReduction {
    /// Of how many of a weight's largest singular directions intruders are looked for. At least 1. Default: 10.
    pub top_k: usize,
    /// A direction is an intruder where its cosine with every direction of the base is below this. In [0, 1]. Default: 0.5.
    pub threshold_epsilon: f64,
    /// What an intruder is multiplied with, in [0, 1]: 1 leaves it, 0 takes it out. Default: 0.75.
    pub mitigation_lambda: f64,
}

impl Default for IntruderReduction {
    fn default() -> Self {
        Self {
            top_k: 10,
            threshold_epsilon: 0.5,
            mitigation_lambda: 0.75,
        }
    }
}

impl IntruderReduction {
    fn check(&self) -> Result<()> {
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(LORA.title, field, value, expected))
        };
        if self.top_k == 0 {
            return refuse("top_k", &self.top_k, "at least 1");
        }
        let share = 0.0..=1.0;
        if !share.contains(&self.threshold_epsilon) {
            return refuse("threshold_epsilon", &self.threshold_epsilon, "in [0, 1]");
        }
        if !share.contains(&self.mitigation_lambda) {
            return refuse("mitigation_lambda", &self.mitigation_lambda, "in [0, 1]");
        }
        Ok(())
    }
}

/// What was found in a layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Intruders {
    /// The layer.
    pub layer: String,
    /// How many intruders it has.
    pub count: usize,
    /// The share of the reduced change's Frobenius norm that factors of the old rank miss, from 0 to 1.
    pub error: f64,
}

/// Makes the intruder dimensions of a trained LoRA smaller (Shuttleworth et al. 2024, LoRA vs Full Fine-tuning: An
/// Illusion of Equivalence, section 5): what the base knew comes back, and some of the task is lost. The result is
/// attached as `name`; the adapter itself stays as it is.
///
/// A direction is a singular vector on the side of a layer's outputs, of a table on the side of its rows. Each
/// intruder's share of the whole weight is multiplied with `mitigation_lambda`; the change that results is brought back
/// to the adapter's rank by its singular values. Scales are folded in: the new adapter's is 1. Layers without intruders
/// keep their factors.
///
/// ```no_run
/// # use peft_reparameterization::{IntruderReduction, reduce_intruders};
/// # fn f<M: peft_core::PeftModule>(model: &M) -> peft_core::Result<()> {
/// let (model, found) = reduce_intruders(model, "tuned", "reduced", IntruderReduction::default())?;
/// for layer in found.iter().filter(|layer| layer.count > 0) {
///     println!("{}: {} intruders", layer.layer, layer.count);
/// }
/// # let _ = model;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`Error::Config`] for options out of range; [`CombineError`] in [`Error::Method`] for adapters that
/// [`add_weighted_adapter`](crate::add_weighted_adapter) refuses, for convolutions, and for weights that are not finite;
/// and what [`PeftModule::attach`] refuses.
pub fn reduce_intruders<M: PeftModule>(
    model: &M,
    adapter: &str,
    name: &str,
    options: IntruderReduction,
) -> Result<(M, Vec<Intruders>)> {
    options.check()?;
    let base_name = model.adapter_config(adapter)?["base_model_name_or_path"].clone();
    let trained = Adapter::of(model, adapter, 1.0)?;
    let layout = model.layout();
    let (mut factors, mut found) = (BTreeMap::new(), Vec::new());
    for (layer, old) in &trained.factors {
        let weight = format!("{layer}.weight");
        let mut params = layout.params.iter();
        let weight = params.find(|param| param.name == weight);
        let weight = weight.ok_or_else(|| missing(layer))?;
        if let Kind::Conv2d(_) = old.kind {
            let reason = "it is a convolution; intruders are directions of a matrix";
            return Err(CombineError::refuse(layer, reason));
        }
        let change = old.change();
        let reduced = reduce(plain(weight.value::<2>()), change, old.kind, options)
            .ok_or_else(|| not_finite(layer))?;
        let (new, count, error) = match reduced {
            None => (unscaled(old), 0, 0.0),
            Some((change, count)) => {
                let found = factored(old.kind, change, old.rank());
                let (new, error) = found.ok_or_else(|| not_finite(layer))?;
                (new, count, error)
            }
        };
        factors.insert(layer.clone(), new);
        found.push(Intruders {
            layer: layer.clone(),
            count,
            error,
        });
    }
    let mut config = LoraFromFactors::config(&factors, &layout);
    config.bias = trained.config.bias;
    config.lora_bias = !trained.added.is_empty();
    config.common.base_model_name_or_path = base_name.as_str().map(Into::into);
    let given = LoraFromFactors {
        config,
        factors,
        added: trained.added,
        biases: trained.biases,
    };
    Ok((model.attach(name, &given)?, found))
}

fn not_finite(layer: &str) -> Error {
    let reason = "its weight has no singular values; is it finite?";
    CombineError::refuse(layer, reason)
}

/// The same change with a scale of 1.
fn unscaled(factors: &Factors) -> Factors {
    Factors {
        left: factors.left.clone() * factors.scale,
        scale: 1.0,
        more: false,
        ..factors.clone()
    }
}

/// The change with its intruders made smaller, and how many there are; `Some(None)` where there is none, `None` where
/// something is not finite.
#[expect(
    clippy::option_option,
    reason = "no singular values and no intruders are two things"
)]
fn reduce(
    weight: Tensor<2>,
    change: Tensor<2>,
    kind: Kind,
    options: IntruderReduction,
) -> Option<Option<(Tensor<2>, usize)>> {
    let before = svd(weight.clone())?;
    let after = svd(weight + change.clone())?;
    // As columns.
    let directions = |svd: &Svd| match kind {
        Kind::Embedding => svd.u.clone(),
        _ => svd.vt.clone().transpose(),
    };
    let cosines = directions(&after)
        .transpose()
        .matmul(directions(&before))
        .abs();
    let nearest: Vec<f32> = cosines.max_dim(1).into_data().iter().collect();
    let intruders = nearest.iter().take(options.top_k).enumerate();
    let intruders: Vec<usize> = intruders
        .filter(|(_, cosine)| f64::from(**cosine) < options.threshold_epsilon)
        .map(|(at, _)| at)
        .collect();
    if intruders.is_empty() {
        return Some(None);
    }
    let ([rows, _], [_, columns]) = (after.u.dims(), after.vt.dims());
    let reduced = intruders.iter().fold(change, |change, &at| {
        let left = after.u.clone().slice([0..rows, at..at + 1]);
        let right = after.vt.clone().slice([at..at + 1, 0..columns]);
        let value = after.s.clone().narrow(0, at, 1).unsqueeze();
        change + left.matmul(right * value) * (options.mitigation_lambda - 1.0)
    });
    Some(Some((reduced, intruders.len())))
}

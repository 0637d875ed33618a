//! `SuperTuning`: the elements of each weight that are largest, or smallest, in magnitude are trained, with a low-rank
//! change besides if asked for.

use burn::nn::DropoutConfig;
use peft_core::method::SparseDelta;
use peft_core::method::prelude::*;
use peft_core::nn::AdaptedForward as _;

use crate::low_rank::LowRankChange;
use crate::ranking::ranked;
use crate::upstream::json_without;

/// `SuperTuning`'s configuration. Fields are called and behave as in Hugging Face PEFT's `SupertuningConfig`.
#[method_config(
    SUPERTUNING, peft_type = "SUPERTUNING", title = "SuperTuning", family = Selective, identity_at_init, mergeable, new(),
    reference = "Super-Tuning 2026 (arXiv 2607.09287); Hugging Face PEFT 0.21, SupertuningConfig",
    to_json = SuperTuningConfig::json
)]
pub struct SuperTuningConfig {
    /// Share of a weight's elements that stay as they are: of n elements, `n · (1 − sparsity)` train, rounded down.
    #[field(default = 0.99, probability)]
    pub sparsity: f64,
    /// Whether the largest magnitudes train; else the smallest.
    #[field(default = true)]
    pub select_top: bool,
    /// Rank of a low-rank change that is added (the paper's Supra). Default: none.
    #[field(at_least = 1)]
    pub r: Option<usize>,
    /// The low-rank change is scaled by `lora_alpha / r`. Only with `r`. Default: `2 · r`.
    #[field(finite)]
    pub lora_alpha: Option<f64>,
    /// Dropout on the input of the low-rank change; on the activation side only.
    #[field(default = 0.0, probability)]
    pub lora_dropout: f64,
    /// Whether the changes start at 0, so that a fresh adapter changes nothing; else they are random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    /// Whether the file has the places. Without them they are sought again in the base when the file is loaded, which has
    /// to be the same.
    #[field(default = true)]
    pub save_precomputed_indices: bool,
    /// Layers to adapt.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl SuperTuningConfig {
    fn json(&self) -> Value {
        let others = ["exclude_modules", "layers_to_transform", "layers_pattern"];
        json_without(self, &others)
    }

    /// How many elements of a layer's weight train.
    fn count(&self, target: &TargetLayer<'_>) -> Result<usize> {
        let all = target.d_in.saturating_mul(target.d_out);
        if all > i32::MAX as usize {
            let (field, expected) = ("target_modules", "layers with fewer than 2^31 elements");
            return Err(Error::config(
                SUPERTUNING.title,
                field,
                target.name(),
                expected,
            ));
        }
        let count = (all as f64 * (1.0 - self.sparsity)) as usize;
        if count == 0 {
            let expected = format!(
                "less: of the {all} elements of `{}` at least one has to train",
                target.name()
            );
            return Err(Error::config(
                SUPERTUNING.title,
                "sparsity",
                self.sparsity,
                expected,
            ));
        }
        Ok(count)
    }

    /// The places of those that train in upstream's flattened weight `[out, in]`, in upstream's order.
    fn places(&self, target: &TargetLayer<'_>, count: usize) -> Vec<i64> {
        let sign = if self.select_top { 1.0 } else { -1.0 };
        let weight = target.weight.value::<2>().detach().transpose();
        let scores: Vec<f32> = weight
            .into_data()
            .iter::<f32>()
            .map(|value| sign * value.abs())
            .collect();
        let places = ranked(&scores, count);
        places.into_iter().map(|place| place as i64).collect()
    }

    /// The low-rank change of a layer.
    fn low_rank(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Option<LowRankChange> {
        let (r, like) = (self.r?, target.like());
        let init = plan.init();
        Some(LowRankChange {
            down: init.kaiming_uniform([target.d_in, r], target.d_in, like),
            up: init.zeros_or_kaiming_uniform(self.init_weights, [r, target.d_out], r, like),
            dropout: DropoutConfig::new(self.lora_dropout).init(),
            scale: self.lora_alpha.unwrap_or(2.0 * r as f64) / r as f64,
        })
    }
}

/// `W' = W + S + s·A B`, where S is 0 but at k places; the second term where the configuration has a rank.
#[derive(Module, Debug)]
pub struct SuperTuning {
    /// S.
    pub sparse: SparseDelta,
    /// A, B and s.
    pub low_rank: Option<LowRankChange>,
}

impl Adapter for SuperTuning {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let mut keys: Vec<CheckpointKey> = self.sparse.tensors();
        keys = keys.into_iter().map(|key| key.within("sparse")).collect();
        if self.low_rank.is_some() {
            for (field, name) in [("down", "supertuning_lora_A"), ("up", "supertuning_lora_B")] {
                let key = CheckpointKey::layer(field, &format!("{name}.weight"));
                keys.push(key.transposed().within("low_rank"));
            }
        }
        keys
    }
}

impl WeightAdapter for SuperTuning {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let weight = self.sparse.compose(weight);
        match &self.low_rank {
            Some(low_rank) => {
                let shape = weight.shape();
                weight + low_rank.change().product().reshape(shape)
            }
            None => weight,
        }
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let output = self.sparse.linear(input.clone(), base);
        match &self.low_rank {
            Some(low_rank) => {
                let dropped = low_rank.dropout.adapted(input);
                peft_core::ops::add_low_rank(output, dropped, low_rank.change())
            }
            None => output,
        }
    }
}

impl LinearMethod for SuperTuningConfig {
    type State = SuperTuning;

    fn check(&self) -> Result<()> {
        match self.lora_alpha {
            Some(alpha) if self.r.is_none() => {
                let expected = "none without `r`";
                Err(Error::config(
                    SUPERTUNING.title,
                    "lora_alpha",
                    alpha,
                    expected,
                ))
            }
            _ => Ok(()),
        }
    }

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<SuperTuning> {
        let (shape, count) = ([target.d_in, target.d_out], self.count(target)?);
        let (device, dtype) = (target.weight.device(), DType::I32);
        let places = |_: &mut Init| self.places(target, count);
        let saved = self.save_precomputed_indices;
        let indices = if plan.is_new() || saved {
            plan.init().integers([1, count], (&device, dtype), places)
        } else {
            // The file lacks them.
            Init::new(0).integers([1, count], (&device, dtype), places)
        };
        let values = plan
            .init()
            .zeros_or_normal(self.init_weights, [count], 1.0, target.like());
        let key = saved.then_some("supertuning_indices");
        Ok(SuperTuning {
            sparse: SparseDelta::flat(values, indices, &shape, true)
                .with_keys("supertuning_values", key),
            low_rank: self.low_rank(target, plan),
        })
    }
}

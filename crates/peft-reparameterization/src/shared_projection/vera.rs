//! VeRA: two frozen random projections that all layers share, scaled by trained vectors.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{DType, Device, Tensor};
use peft_core::checkpoint::transposed;
use peft_core::method::{
    Adapter, BaseLinear, CheckpointKey, Common, Family, Layout, Method, MethodInfo, Plan, Shared,
    WeightAdapter, by_peft_type, config_from_json,
};
use peft_core::nn::{AdaptedForward, dropout_rate};
use peft_core::ops::{LowRank, add_low_rank};
use peft_core::{Error, Result, Targets};
use serde::{Deserialize, Serialize};

use crate::math::torch_random::TorchGenerator;
use crate::shared_projection::projections::{corner, first_like, fits, lazy, widest, yes};
use peft_core::method::{Bias, LINEAR, select, train_biases};
use peft_core::{common_method, target_builders};

/// VeRA's registration.
pub static VERA: MethodInfo = MethodInfo {
    name: "vera",
    peft_type: "VERA",
    title: "VeRA",
    family: Family::Reparameterization,
    reference: "Kopiczko et al. 2024, VeRA: Vector-based Random Matrix Adaptation, section 3.1",
    identity_at_init: true,
    mergeable: true,
    parse: config_from_json::<VeraConfig>,
    recognises: by_peft_type,
};

/// Kopiczko et al. 2024, section 3.1: `y = xW + ((drop(x) A) ∘ d) B ∘ b`, where A and B are corners
/// of two frozen matrices that all layers share.
#[derive(Module, Debug)]
pub struct VeraLinear {
    /// A of the widest layer, `[in, r]`, frozen. A layer uses its first rows.
    pub vera_a: Shared<2>,
    /// B of the widest layer, `[r, out]`, frozen. A layer uses its first columns.
    pub vera_b: Shared<2>,
    /// d, `[r]`.
    pub vera_lambda_d: Param<Tensor<1>>,
    /// b, `[out]`.
    pub vera_lambda_b: Param<Tensor<1>>,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
    /// The layer's input width.
    pub d_in: usize,
    /// Whether A and B are in the checkpoint; if not, the configuration's key says all about them.
    pub save_projection: bool,
}

impl VeraLinear {
    /// The change as factors. Both vectors are in the second, so that the first is frozen and costs
    /// no gradient.
    fn factors(&self) -> LowRank {
        let (d, b) = (self.vera_lambda_d.val(), self.vera_lambda_b.val());
        let ([rank], [d_out]) = (d.dims(), b.dims());
        let up = corner(self.vera_b.val(), [rank, d_out]);
        LowRank {
            down: corner(self.vera_a.val(), [self.d_in, rank]),
            up: up * d.reshape([rank, 1]) * b.reshape([1, d_out]),
            scale: 1.0,
            dropout: 0.0,
        }
    }
}

impl Adapter for VeraLinear {
    const METHOD: &'static str = "vera";

    fn tensors(&self) -> Vec<CheckpointKey> {
        let mut tensors = vec![
            CheckpointKey::layer("vera_lambda_d", "vera_lambda_d"),
            CheckpointKey::layer("vera_lambda_b", "vera_lambda_b"),
        ];
        tensors.extend(if self.save_projection {
            [
                CheckpointKey::root("vera_a", "base_model.vera_A").transposed(),
                CheckpointKey::root("vera_b", "base_model.vera_B").transposed(),
            ]
        } else {
            ["vera_a", "vera_b"].map(CheckpointKey::unsaved)
        });
        tensors
    }
}

impl WeightAdapter for VeraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let LowRank { down, up, .. } = self.factors();
        let shape = weight.shape();
        weight + down.matmul(up).reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        let factors = self.factors();
        let dropping = dropout_rate(&self.dropout) > 0.0 && factors.up.is_autodiff();
        (!dropping).then_some(factors)
    }

    fn linear(&self, input: Tensor<2>, inner: &BaseLinear<'_>) -> Tensor<2> {
        let dropped = self.dropout.adapted(input.clone());
        add_low_rank(inner.forward(input), dropped, self.factors())
    }
}

/// VeRA's configuration. Fields are called and behave as in Hugging Face PEFT's `VeraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VeraConfig {
    /// Rank of the projections. Default: 256. At least 1; it may exceed a layer's width.
    #[serde(default = "default_rank")]
    pub r: usize,
    /// Seed of the projections, for torch's generator. Default: 0.
    #[serde(default)]
    pub projection_prng_key: i64,
    /// Whether the projections are in the checkpoint. Default: true.
    #[serde(default = "yes")]
    pub save_projection: bool,
    /// Dropout probability on the projections' input, in [0, 1). Default: 0. It acts on the
    /// activation side only.
    #[serde(default)]
    pub vera_dropout: f64,
    /// Initial value of d. Default: 0.1.
    #[serde(default = "default_d_initial")]
    pub d_initial: f64,
    /// Biases to train. Default: none.
    #[serde(default)]
    pub bias: Bias,
    /// Initial values. Default: true, d at `d_initial` and b zero. False: d normal and b one, so that
    /// the fresh adapter does change outputs; for tests.
    #[serde(default = "yes")]
    pub init_weights: bool,
    /// Layers to adapt. Default: `all-linear`.
    #[serde(flatten)]
    pub targets: Targets,
    /// Fields that every method has.
    #[serde(flatten)]
    pub common: Common,
}

fn default_rank() -> usize {
    256
}

fn default_d_initial() -> f64 {
    0.1
}

impl Default for VeraConfig {
    fn default() -> Self {
        Self::new(default_rank())
    }
}

impl VeraConfig {
    /// VeRA of rank `r` on all linear layers but the output head.
    pub fn new(r: usize) -> Self {
        Self {
            r,
            projection_prng_key: 0,
            save_projection: true,
            vera_dropout: 0.0,
            d_initial: default_d_initial(),
            bias: Bias::None,
            init_weights: true,
            targets: Targets::default(),
            common: Common::default(),
        }
    }

    /// Sets the seed of the projections.
    #[must_use]
    pub fn with_projection_key(mut self, key: i64) -> Self {
        self.projection_prng_key = key;
        self
    }

    /// Sets whether the projections are in the checkpoint.
    #[must_use]
    pub fn with_saved_projection(mut self, save: bool) -> Self {
        self.save_projection = save;
        self
    }

    /// Sets the dropout probability.
    #[must_use]
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.vera_dropout = dropout;
        self
    }

    /// Sets the initial value of d.
    #[must_use]
    pub fn with_d_initial(mut self, d_initial: f64) -> Self {
        self.d_initial = d_initial;
        self
    }

    /// Sets which biases are trained.
    #[must_use]
    pub fn with_bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }

    target_builders!();

    /// A and B for layers of these widths at most.
    fn projections(
        &self,
        [d_in, d_out]: [usize; 2],
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> [Param<Tensor<2>>; 2] {
        let rank = self.r;
        if self.save_projection && !plan.is_new() {
            let init = plan.init();
            return [[d_in, rank], [rank, d_out]]
                .map(|shape| init.zeros(shape, like).set_require_grad(false));
        }
        let key = self.projection_prng_key.cast_unsigned();
        let a = move || transposed(&drawn(key, rank, [d_in, d_out])[0], [rank, d_in]);
        let b = move || transposed(&drawn(key, rank, [d_in, d_out])[1], [d_out, rank]);
        [
            lazy([d_in, rank], like, false, a),
            lazy([rank, d_out], like, false, b),
        ]
    }
}

impl Method for VeraConfig {
    common_method!(VERA);

    fn validate(&self) -> Result<()> {
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(VERA.title, field, value, expected))
        };
        if self.r == 0 {
            return refuse("r", &self.r, "at least 1");
        }
        if !(0.0..1.0).contains(&self.vera_dropout) {
            return refuse("vera_dropout", &self.vera_dropout, "in [0, 1)");
        }
        if !self.d_initial.is_finite() {
            return refuse("d_initial", &self.d_initial, "a finite number");
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = select(&self.targets, layout, plan, &VERA, LINEAR)?;
        let widths = widest(&targets);
        let rank = self.r;
        if !fits(&[rank, widths[0].max(widths[1])]) {
            let expected = "a rank whose projections fit into memory";
            return Err(Error::config(VERA.title, "r", rank, expected));
        }
        let (device, dtype) = first_like(&targets, layout);
        let [a, b] = self.projections(widths, plan, (&device, dtype));
        let handles = Shared::new(a, targets.len()).zip(Shared::new(b, targets.len()));
        for (&(_, weight), (vera_a, vera_b)) in targets.iter().zip(handles) {
            let [d_in, d_out] = [weight.shape()[0], weight.shape()[1]];
            let like = (&weight.device(), weight.dtype());
            let (d, b) = if self.init_weights {
                let d_initial = self.d_initial as f32;
                (
                    lazy([rank], like, true, move || vec![d_initial; rank]),
                    plan.init().zeros([d_out], like),
                )
            } else {
                (
                    plan.init().normal([rank], 1.0, like),
                    lazy([d_out], like, true, move || vec![1.0; d_out]),
                )
            };
            let state = VeraLinear {
                vera_a,
                vera_b,
                vera_lambda_d: d,
                vera_lambda_b: b,
                dropout: DropoutConfig::new(self.vera_dropout).init(),
                d_in,
                save_projection: self.save_projection,
            };
            plan.adapt_weight(weight, state);
        }
        train_biases(self.bias, layout, &targets, plan);
        Ok(())
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.r)
    }
}

/// A `[rank, in]` and B `[out, rank]` as upstream draws them: torch's `kaiming_uniform_` with gain √2,
/// A first.
fn drawn(key: u64, rank: usize, [d_in, d_out]: [usize; 2]) -> [Vec<f32>; 2] {
    let mut generator = TorchGenerator::new(key);
    [[rank, d_in], [d_out, rank]].map(|[rows, fan_in]| {
        let bound = 3.0_f64.sqrt() * (2.0_f64.sqrt() / (fan_in as f64).sqrt());
        generator.uniform(rows * fan_in, -bound as f32, bound as f32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_projection::projections::tests::golden;
    use burn::tensor::{Shape, TensorData};

    #[test]
    fn the_key_gives_upstreams_projections() {
        let [a, b] = drawn(0, 16, [32, 32]);
        for (ours, key) in [(a, "base_model.vera_A"), (b, "base_model.vera_B")] {
            let theirs = golden("vera", key);
            assert_eq!(ours.len(), theirs.len());
            // To the last bit but one: torch contracts a product and a sum where the processor can.
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-7;
            assert!(ours.iter().zip(&theirs).all(close), "{key}");
        }
    }

    #[test]
    fn a_layer_uses_the_corner_of_what_all_share() {
        let (_, device) = &peft_core::device::cpu_devices()[0];
        let tensor = |data: &[f32], shape: [usize; 2]| {
            let data = TensorData::new(data.to_vec(), Shape::from(shape.to_vec()));
            Param::from_tensor(Tensor::<2>::from_data(data, device))
        };
        let vector = |data: &[f32]| {
            let data = TensorData::new(data.to_vec(), Shape::from(vec![data.len()]));
            Param::from_tensor(Tensor::<1>::from_data(data, device))
        };
        let a = tensor(&[1.0, 2.0, 3.0, 4.0, 9.0, 9.0], [3, 2]);
        let b = tensor(&[1.0, -1.0, 9.0, 2.0, 5.0, 9.0], [2, 3]);
        let state = VeraLinear {
            vera_a: Shared::new(a, 1).next().unwrap(),
            vera_b: Shared::new(b, 1).next().unwrap(),
            vera_lambda_d: vector(&[10.0, 1.0]),
            vera_lambda_b: vector(&[1.0, 2.0]),
            dropout: DropoutConfig::new(0.0).init(),
            d_in: 2,
            save_projection: true,
        };
        let change = state.compose(Tensor::<2>::zeros([2, 2], device));
        // Rows [1, 2] and [3, 4], times [[10, -20], [2, 10]].
        let expected = TensorData::from([[14.0_f32, 0.0], [38.0, -20.0]]);
        change.into_data().assert_eq(&expected, false);
    }
}

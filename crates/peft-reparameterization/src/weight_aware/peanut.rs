//! PEANuT: the change of a weight is what a small network makes of the weight.

use peft_core::method::prelude::*;
use peft_core::method::{Activation, upstream_json};

/// `W' = W + s·H B`, with H what the network makes of W: `H = σ(W A)`, then the encoders, then the decoders.
///
/// H is `[in, r]`. So the change is low rank for the W that is below, and no matrix of the weight's size is made.
#[derive(Module, Debug)]
pub struct PeanutLinear {
    /// A, `[out, r]`: the outputs of W go in.
    pub peanut_a: Param<Tensor<2>>,
    /// E₁, E₂, …, each `[r, r]`: `H ← σ(H Eᵢ)`.
    pub encoders: Vec<Param<Tensor<2>>>,
    /// D₁, D₂, …, each `[r, r]`: `H ← σ(H Dᵢ)`, plus what went into the encoder that mirrors it.
    pub decoders: Vec<Param<Tensor<2>>>,
    /// B, `[r, out]`.
    pub peanut_b: Param<Tensor<2>>,
    /// s.
    pub scaling: f64,
    /// σ.
    #[module(skip)]
    pub act_fn: Activation,
}

impl Adapter for PeanutLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let key = |field: &str, key: &str| CheckpointKey::layer(field, key).transposed();
        let mut keys = vec![
            key("peanut_a", "peanut_A.weight"),
            key("peanut_b", "peanut_B.weight"),
        ];
        for (kind, list) in [("encoders", &self.encoders), ("decoders", &self.decoders)] {
            keys.extend((0..list.len()).map(|at| {
                let stored = format!("peanut_{kind}.{at}.weight");
                key(&format!("{kind}.{at}"), &stored)
            }));
        }
        keys
    }
}

impl PeanutLinear {
    /// The change as factors, H and B, for a weight `[in, out]`.
    fn factors(&self, weight: Tensor<2>) -> LowRank {
        let mut hidden = self.act_fn.apply(weight.matmul(self.peanut_a.val()));
        let mut inputs = Vec::with_capacity(self.encoders.len());
        for encoder in &self.encoders {
            inputs.push(hidden.clone());
            hidden = self.act_fn.apply(hidden.matmul(encoder.val()));
        }
        for decoder in &self.decoders {
            hidden = self.act_fn.apply(hidden.matmul(decoder.val()));
            if let Some(input) = inputs.pop() {
                hidden = hidden + input;
            }
        }
        LowRank::new(hidden, self.peanut_b.val(), self.scaling)
    }
}

impl WeightAdapter for PeanutLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let matrix = weight.clone().reshape([shape[0], shape[1]]);
        weight + self.factors(matrix).product().reshape(shape)
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let factors = self.factors(inner.weight());
        inner.forward_with(input, factors)
    }
}

/// PEANuT's configuration. Fields are called and behave as in Hugging Face PEFT's `PeanutConfig`.
#[method_config(
    PEANUT, peft_type = "PEANUT", title = "PEANuT", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Zhong et al. 2024, PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers",
    to_json = PeanutConfig::json
)]
pub struct PeanutConfig {
    /// Width of the network, which bounds the rank of the change.
    #[field(default = 32, at_least = 1)]
    pub r: usize,
    /// How many encoders there are between A and B, and as many decoders.
    #[field(any)]
    pub depth: usize,
    /// Non-linearity behind A and behind every encoder and decoder, as transformers calls it. Default: `relu`.
    pub act_fn: Activation,
    /// Factor s of the change.
    #[field(default = 1.0, finite)]
    pub scaling: f64,
    /// Whether a fresh adapter changes nothing: B is zero. Else it is random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    pub targets: Targets,
    pub common: Common,
}

impl PeanutConfig {
    /// With transformers' names only.
    fn json(&self) -> Value {
        let mut json = upstream_json(self);
        if self.act_fn == Activation::LeakyRelu {
            json["act_fn"] = "leaky_relu".into();
        }
        json
    }
}

impl LinearMethod for PeanutConfig {
    type State = PeanutLinear;

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<PeanutLinear> {
        let (out, rank, like) = (target.d_out, self.r, target.like());
        let mut inner = |kind: &str| {
            let mut found = Vec::new();
            for at in 0..self.depth {
                let stored = plan.stored_shape(target.layer, &format!("{kind}.{at}.weight"));
                // A file's own depth bounds what is made. The one that is missing is made, and then missed.
                let ends = !plan.is_new() && stored.is_none();
                found.push(plan.init().kaiming_uniform([rank, rank], rank, like));
                if ends {
                    break;
                }
            }
            found
        };
        let (encoders, decoders) = (inner("peanut_encoders"), inner("peanut_decoders"));
        let init = plan.init();
        let peanut_b = init.zeros_or_kaiming_uniform(self.init_weights, [rank, out], rank, like);
        Ok(PeanutLinear {
            peanut_a: init.kaiming_uniform([out, rank], out, like),
            encoders,
            decoders,
            peanut_b,
            scaling: self.scaling,
            act_fn: self.act_fn,
        })
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn adapter(depth: usize, act_fn: Activation, device: &Device) -> PeanutLinear {
        let mut init = Init::new(3);
        let like = (device, DType::F32);
        let mut list = || {
            (0..depth)
                .map(|_| init.normal([2, 2], 0.7, like))
                .collect::<Vec<_>>()
        };
        let (encoders, decoders) = (list(), list());
        PeanutLinear {
            peanut_a: init.normal([5, 2], 1.0, like),
            encoders,
            decoders,
            peanut_b: init.normal([2, 5], 1.0, like),
            scaling: 0.3,
            act_fn,
        }
    }

    /// A row times a matrix, in f64.
    fn times(row: &[f64], matrix: &Param<Tensor<2>>) -> Vec<f64> {
        let [rows, columns] = matrix.dims();
        let matrix: Vec<f64> = matrix.val().into_data().iter().collect();
        (0..columns)
            .map(|column| {
                (0..rows)
                    .map(|at| row[at] * matrix[at * columns + column])
                    .sum()
            })
            .collect()
    }

    #[test]
    fn each_row_of_the_weight_goes_through_the_network() {
        for (_, device) in peft_core::device::cpu_devices() {
            for depth in [0, 1, 3] {
                let adapter = adapter(depth, Activation::Tanh, &device);
                let weight = Init::new(4).normal([3, 5], 1.0, (&device, DType::F32));
                let composed: Vec<f64> = adapter.compose(weight.val()).into_data().iter().collect();
                let rows: Vec<f64> = weight.val().into_data().iter().collect();
                for (row, found) in rows.chunks(5).zip(composed.chunks(5)) {
                    let tanh =
                        |values: Vec<f64>| values.into_iter().map(f64::tanh).collect::<Vec<_>>();
                    let mut levels = vec![tanh(times(row, &adapter.peanut_a))];
                    for encoder in &adapter.encoders {
                        levels.push(tanh(times(&levels[levels.len() - 1], encoder)));
                    }
                    let mut hidden = levels[depth].clone();
                    for (at, decoder) in adapter.decoders.iter().enumerate() {
                        let added = &levels[depth - 1 - at];
                        hidden = tanh(times(&hidden, decoder));
                        hidden
                            .iter_mut()
                            .zip(added)
                            .for_each(|(value, added)| *value += added);
                    }
                    let change = times(&hidden, &adapter.peanut_b);
                    for ((found, base), change) in found.iter().zip(row).zip(change) {
                        let expected = base + 0.3 * change;
                        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_non_linearity_is_written_as_transformers_calls_it() {
        let json = |act_fn| PeanutConfig::new(2).with_act_fn(act_fn).to_json()["act_fn"].clone();
        assert_eq!(json(Activation::LeakyRelu), "leaky_relu");
        assert_eq!(json(Activation::Relu), "relu");
        let refused =
            serde_json::from_value::<PeanutConfig>(serde_json::json!({ "act_fn": "prelu" }));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("`prelu`"), "{refused}");
    }
}

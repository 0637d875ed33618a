//! LoRA-GA: factors from the gradient of the weight.

use burn::tensor::{DType, Tensor};
use peft_core::Result;
use peft_core::method::{Init, Value};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::lora::values::refuse;
use crate::math::linalg::svd;

/// Which singular vectors of the gradient A and B get, of the first 2r. Upstream's `direction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LoraGaDirection {
    /// A every second one, from the second on, B every second one, from the first on.
    ArBr,
    /// B the first r, A the next r.
    A2rBr,
    /// A the first r, B the next r (the paper's).
    #[default]
    ArB2r,
    /// Both the same random r.
    #[serde(rename = "random")]
    Random,
}

/// How long the factors are. Upstream's `scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LoraGaScale {
    /// B times the fourth root of the layer's outputs over the root of γ.
    #[default]
    Stable,
    /// B's first row as long as the largest singular value of the weight.
    WeightSvd,
    /// Both divided by LoRA's scale.
    GdScale,
    /// As they are.
    Unit,
}

/// LoRA-GA's fields. Upstream's `LoraGAConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraGaConfig {
    /// Which singular vectors the factors get. Default: `ArB2r`.
    pub direction: LoraGaDirection,
    /// How long they are. Default: `stable`.
    pub scale: LoraGaScale,
    /// γ of `stable`. Above 0. Default: 16.
    pub stable_gamma: f64,
    /// Further fields, written back as they were.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Default for LoraGaConfig {
    fn default() -> Self {
        Self::new(LoraGaDirection::default(), LoraGaScale::default())
    }
}

impl LoraGaConfig {
    /// Of this direction and scale.
    pub fn new(direction: LoraGaDirection, scale: LoraGaScale) -> Self {
        Self {
            direction,
            scale,
            stable_gamma: 16.0,
            rest: Map::new(),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.stable_gamma > 0.0 && self.stable_gamma.is_finite() {
            return Ok(());
        }
        let expected = "a finite `stable_gamma` above 0";
        refuse("lora_ga_config", self, expected)
    }

    /// Wang et al. 2024, LoRA-GA, section 3: A `[in, r]` and B `[r, out]` from the gradient `[in, out]` of `weight`;
    /// `scale` is LoRA's. `None` where something is not finite. 2r is at most the layer's smaller side.
    pub(crate) fn factors(
        &self,
        gradient: Tensor<2>,
        weight: Tensor<2>,
        (rank, scale): (usize, f64),
        init: &mut Init,
    ) -> Option<[Tensor<2>; 2]> {
        let svd_of = svd(gradient)?;
        let (of_a, of_b): (Vec<usize>, Vec<usize>) = match self.direction {
            LoraGaDirection::ArBr => (0..rank).map(|at| (2 * at + 1, 2 * at)).unzip(),
            LoraGaDirection::A2rBr => (0..rank).map(|at| (rank + at, at)).unzip(),
            LoraGaDirection::ArB2r => (0..rank).map(|at| (at, rank + at)).unzip(),
            LoraGaDirection::Random => {
                let chosen = init.indices(rank, 2 * rank);
                (chosen.clone(), chosen)
            }
        };
        let ([d_in, _], [_, d_out]) = (svd_of.u.dims(), svd_of.vt.dims());
        let rows = of_b.iter().map(|&at| {
            let value = svd_of.s.clone().narrow(0, at, 1).unsqueeze_dim(1);
            svd_of.vt.clone().slice([at..at + 1, 0..d_out]) * value
        });
        let columns = of_a
            .iter()
            .map(|&at| svd_of.u.clone().slice([0..d_in, at..at + 1]));
        let (mut a, mut b) = (
            Tensor::cat(columns.collect(), 1),
            Tensor::cat(rows.collect(), 0),
        );
        match self.scale {
            LoraGaScale::Stable => {
                b = b * ((d_out as f64).powf(0.25) / self.stable_gamma.sqrt());
            }
            LoraGaScale::WeightSvd => {
                let first: f32 = svd_of.s.narrow(0, of_b[0], 1).into_scalar();
                let weight = svd(weight.without_autodiff().cast(DType::F32))?;
                let largest: f32 = weight.s.narrow(0, 0, 1).into_scalar();
                if first > 0.0 {
                    b = b * (largest / first);
                }
            }
            LoraGaScale::GdScale => {
                a = a / scale;
                b = b / scale;
            }
            LoraGaScale::Unit => {}
        }
        Some([a, b])
    }
}

//! CorDA: factors from the weight and what goes into the layer.

use burn::tensor::{DType, Tensor};
use peft_core::method::Value;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::math::linalg::svd_within;

/// Which directions CorDA trains. Upstream's `corda_method`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CordaMethod {
    /// Instruction-previewed: those that matter most for the data, which are of the task.
    #[default]
    Ipm,
    /// Knowledge-preserved: those that matter least for the data, which are of what shall be kept.
    Kpm,
}

/// CorDA's fields. Upstream's `CordaConfig`; its fields for files and messages have no meaning here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CordaConfig {
    /// Which directions are trained. Default: `ipm`.
    pub corda_method: CordaMethod,
    /// Further fields, written back as they were.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl CordaConfig {
    /// Of this method.
    pub fn new(corda_method: CordaMethod) -> Self {
        Self {
            corda_method,
            rest: Map::new(),
        }
    }
}

/// How much of the mean of its diagonal is added to the second moment's diagonal, so that it can be inverted.
const DAMPING: f64 = 0.01;

/// Yang et al. 2024, CorDA, section 3.3: A `[in, r]` and B `[r, out]` from `U S Vᵀ` of the transposed weight times the
/// inputs' second moment C, as `A = C⁻¹ V √S`, `B = √S Uᵀ`, of the largest or the smallest r singular values; both
/// divided by the root of the scale. `None` where something is not finite.
pub(crate) fn factors(
    method: CordaMethod,
    weight: Tensor<2>,
    moment: Tensor<2>,
    (rank, scale): (usize, f64),
) -> Option<[Tensor<2>; 2]> {
    let weight = weight.without_autodiff().cast(DType::F32).transpose();
    let [out, d_in] = weight.dims();
    let identity = Tensor::<2>::eye(d_in, &moment.device()).cast(DType::F32);
    let mean: f32 = (moment.clone() * identity.clone()).sum().into_scalar();
    let mean = f64::from(mean) / d_in as f64;
    let damped = moment + identity * (mean * DAMPING);
    let all = svd_within(weight, damped)?;
    let count = out.min(d_in);
    let from = match method {
        CordaMethod::Ipm => 0,
        CordaMethod::Kpm => count.saturating_sub(rank),
    };
    let chosen = from..(from + rank).min(count);
    let root = (all.s.slice([chosen.clone()]) / scale).sqrt();
    let a = all.vt.slice([chosen.clone(), 0..d_in]) * root.clone().unsqueeze_dim(1);
    let b = all.u.slice([0..out, chosen]) * root.unsqueeze();
    Some([a.transpose(), b.transpose()])
}

//! RoAd: outputs are rotated and scaled, two at a time.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::method::{
    Adapter, BaseLinear, Common, LinearMethod, Plan, Shared, TargetLayer, WeightAdapter,
    method_config,
};
use peft_core::{Error, Result, Targets};
use serde::{Deserialize, Serialize};

/// How many angles and scales there are for a pair of outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RoadVariant {
    /// One of each: a rotation and a scale.
    #[default]
    #[serde(rename = "road_1")]
    Road1,
    /// One of each for an output.
    #[serde(rename = "road_2")]
    Road2,
    /// Two of each for an output: all four elements of the pair's matrix are free.
    #[serde(rename = "road_4")]
    Road4,
}

impl RoadVariant {
    /// How many angles there are for two outputs, and as many scales.
    fn per_pair(self) -> usize {
        match self {
            Self::Road1 => 1,
            Self::Road2 => 2,
            Self::Road4 => 4,
        }
    }
}

/// `y = R (x W + b)`, R of a 2 × 2 matrix for each pair of outputs; on the layer's weight, and on its bias.
#[derive(Module, Adapter, Debug)]
pub struct Road {
    /// θ, `[out / 2]`, `[out]` or `[2 out]`. One parameter of weight and bias.
    #[tensor("road_theta")]
    pub road_theta: Shared<1>,
    /// α, likewise.
    #[tensor("road_alpha")]
    pub road_alpha: Shared<1>,
    /// How many angles there are.
    #[module(skip)]
    pub variant: RoadVariant,
    /// Outputs i and `i + group_size / 2` of a group of so many are a pair.
    pub group_size: usize,
}

impl Road {
    /// What each output is multiplied with, and what the other one of its pair is, both `[groups, 2, group_size / 2]`:
    /// `α cos θ`, and `α sin θ` with the sign of a rotation.
    fn factors(&self) -> (Tensor<3>, Tensor<3>) {
        let half = (self.group_size / 2) as isize;
        let (theta, alpha) = (self.road_theta.val(), self.road_alpha.val());
        let (own, other) = match self.variant {
            RoadVariant::Road1 => {
                let (theta, alpha) = (
                    theta.reshape([-1, 1, half]).repeat_dim(1, 2),
                    alpha.reshape([-1, 1, half]).repeat_dim(1, 2),
                );
                (alpha.clone() * theta.clone().cos(), alpha * theta.sin())
            }
            RoadVariant::Road2 => {
                let (theta, alpha) = (theta.reshape([-1, 2, half]), alpha.reshape([-1, 2, half]));
                (alpha.clone() * theta.clone().cos(), alpha * theta.sin())
            }
            // Of each group those of the own outputs come first, then those of the others.
            RoadVariant::Road4 => {
                let (theta, alpha) = (theta.reshape([-1, 4, half]), alpha.reshape([-1, 4, half]));
                let part = |of: &Tensor<3>, from| of.clone().narrow(1, from, 2);
                (
                    part(&alpha, 0) * part(&theta, 0).cos(),
                    part(&alpha, 2) * part(&theta, 2).sin(),
                )
            }
        };
        let [first, second] = [0, 1].map(|at| other.clone().narrow(1, at, 1));
        (own, Tensor::cat(vec![first.neg(), second], 1))
    }

    /// The last axis, two elements at a time.
    fn rotated<const D: usize>(&self, value: Tensor<D>) -> Tensor<D> {
        let shape = value.shape();
        let (own, other) = self.factors();
        let [groups, _, half] = own.dims();
        let pairs = value.reshape([-1, groups as isize, 2, half as isize]);
        let [first, second] = [0, 1].map(|at| pairs.clone().narrow(2, at, 1));
        let swapped = Tensor::cat(vec![second, first], 2);
        (pairs * own.unsqueeze() + swapped * other.unsqueeze()).reshape(shape)
    }
}

impl WeightAdapter for Road {
    fn compose<const D: usize>(&self, value: Tensor<D>) -> Tensor<D> {
        self.rotated(value)
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    // The bias is rotated by its own state.
    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        base.with_bias(self.rotated(base.product(input)))
    }

    fn keeps_weight(&self) -> bool {
        false
    }
}

/// `RoAd`'s configuration. Fields are called and behave as in Hugging Face PEFT's `RoadConfig`.
#[method_config(
    ROAD, peft_type = "ROAD", title = "RoAd", family = Additive, identity_at_init, mergeable, new(),
    reference = "Liao and Monz 2024, 3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and \
                 Composability, section 3.1"
)]
pub struct RoadConfig {
    /// How many angles and scales there are for a pair of outputs. Default: `road_1`.
    pub variant: RoadVariant,
    /// Outputs i and `i + group_size / 2` of each group of so many are a pair. Even, at least 2; must divide the layer's
    /// outputs. Default: 64.
    #[field(default = 64, at_least = 2)]
    pub group_size: usize,
    /// Whether a fresh adapter changes nothing; else θ is drawn from N(0, 0.5²) and α from N(1, 0.5²), for tests.
    /// Default: true.
    #[field(default = true)]
    pub init_weights: bool,
    /// Layers to adapt. Default: `all-linear`.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl LinearMethod for RoadConfig {
    type State = Road;

    fn check(&self) -> Result<()> {
        if self.group_size.is_multiple_of(2) {
            return Ok(());
        }
        let expected = "an even number: outputs are taken in pairs";
        Err(Error::config(
            ROAD.title,
            "group_size",
            self.group_size,
            expected,
        ))
    }

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<Road> {
        let out = target.d_out;
        if !out.is_multiple_of(self.group_size) {
            let expected = format!("a divisor of the {out} outputs of `{}`", target.name());
            return Err(Error::config(
                ROAD.title,
                "group_size",
                self.group_size,
                expected,
            ));
        }
        let (shape, like) = ([out / 2 * self.variant.per_pair()], target.like());
        let tests = !self.init_weights && plan.is_new();
        let init = plan.init();
        let (theta, alpha) = if tests {
            let around_one = |value: Tensor<1>| (value.detach() + 1.0).detach().require_grad();
            (
                init.normal(shape, 0.5, like),
                init.normal(shape, 0.5, like).map(around_one),
            )
        } else {
            (init.zeros(shape, like), init.ones(shape, like))
        };
        let places = 1 + usize::from(target.bias.is_some());
        let (mut theta, mut alpha) = (Shared::new(theta, places), Shared::new(alpha, places));
        let mut state = || Road {
            road_theta: theta.next().expect("a handle for each place"),
            road_alpha: alpha.next().expect("a handle for each place"),
            variant: self.variant,
            group_size: self.group_size,
        };
        // The weight comes first in the layer.
        let on_weight = state();
        if let Some(bias) = target.bias {
            plan.adapt_weight(bias, state());
        }
        Ok(on_weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Param;
    use burn::tensor::{DType, TensorData};
    use peft_core::method::Init;

    /// R of the formula, as a dense matrix for columns: `y = x R`, element by element.
    fn dense(
        variant: RoadVariant,
        group: usize,
        theta: &[f32],
        alpha: &[f32],
        out: usize,
    ) -> Vec<f32> {
        let half = group / 2;
        let mut matrix = vec![0.0; out * out];
        for output in 0..out {
            let (in_group, at) = (output / group, output % group);
            let is_first = at < half;
            let partner = if is_first {
                output + half
            } else {
                output - half
            };
            let (own, other) = match variant {
                RoadVariant::Road1 => {
                    let index = in_group * half + at % half;
                    (index, index)
                }
                RoadVariant::Road2 => (output, output),
                RoadVariant::Road4 => {
                    let index = in_group * 2 * group + at;
                    (index, index + group)
                }
            };
            let sign = if is_first { -1.0 } else { 1.0 };
            matrix[output * out + output] = alpha[own] * theta[own].cos();
            matrix[partner * out + output] = sign * alpha[other] * theta[other].sin();
        }
        matrix
    }

    #[test]
    fn outputs_are_rotated_pair_by_pair() {
        let (out, group) = (12, 4);
        for (_, device) in peft_core::device::cpu_devices() {
            for variant in [RoadVariant::Road1, RoadVariant::Road2, RoadVariant::Road4] {
                let like = (&device, DType::F32);
                let mut init = Init::new(5);
                let size = [out / 2 * variant.per_pair()];
                let (theta, alpha) = (init.normal(size, 1.0, like), init.normal(size, 1.0, like));
                let values =
                    |param: &Param<Tensor<1>>| param.val().into_data().try_to_vec().unwrap();
                let matrix = dense(variant, group, &values(&theta), &values(&alpha), out);
                let matrix = Tensor::<2>::from_data(TensorData::new(matrix, [out, out]), &device);
                let state = Road {
                    road_theta: Shared::new(theta, 1).next().unwrap(),
                    road_alpha: Shared::new(alpha, 1).next().unwrap(),
                    variant,
                    group_size: group,
                };
                let weight = init.normal([5, out], 1.0, like).val();
                let expected = weight.clone().matmul(matrix.clone());
                let distance = (state.compose(weight) - expected).abs().max();
                assert!(distance.into_scalar::<f32>() < 1e-5, "{variant:?}");
                let bias = init.normal([out], 1.0, like).val();
                let expected = bias.clone().unsqueeze::<2>().matmul(matrix);
                let distance = (state.compose(bias).unsqueeze::<2>() - expected)
                    .abs()
                    .max();
                assert!(distance.into_scalar::<f32>() < 1e-5, "{variant:?}");
            }
        }
    }
}

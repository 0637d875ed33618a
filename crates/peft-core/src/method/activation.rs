//! Non-linearities of what methods put beside a model.

use std::f64::consts::{FRAC_1_SQRT_2, TAU};

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

/// A non-linearity, by its name in transformers' `ACT2FN`. Other spellings of the same function are read, too, in upper or
/// lower case. Those with parameters of their own (`prelu`, `xielu`) are not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Activation {
    /// max(x, 0): `relu`.
    #[default]
    Relu,
    /// max(x, 0)²: `relu2`.
    Relu2,
    /// min(max(x, 0), 6): `relu6`.
    Relu6,
    /// x, or 0.01 · x where that is negative: `leakyrelu`, `leaky_relu`.
    LeakyRelu,
    /// x·sigmoid(x): `swish`, `silu`.
    Swish,
    /// With the exact error function: `gelu`, `gelu_python`.
    Gelu,
    /// GELU's approximation with tanh: `gelu_new`, `gelu_pytorch_tanh`, `gelu_python_tanh`, `gelu_fast`,
    /// `gelu_accurate`.
    GeluTanh,
    /// x·sigmoid(1.702 · x): `quick_gelu`.
    QuickGelu,
    /// GELU, at most 10: `gelu_10`.
    Gelu10,
    /// x·tanh(ln(1 + exp(x))): `mish`.
    Mish,
    /// 1 / (1 + exp(-x)): `sigmoid`.
    Sigmoid,
    /// x·min(max(x + 3, 0), 6) / 6: `hardswish`.
    HardSwish,
    /// The normal distribution function of mean sqrt(1 / 2) and variance 1 / (4π): `laplace`.
    Laplace,
    /// sqrt(ln(1 + exp(x))): `sqrtsoftplus`.
    SqrtSoftplus,
    /// Hyperbolic tangent: `tanh`.
    Tanh,
    /// x itself: `linear`.
    Linear,
}

/// Each with its spellings; the first is the one that is written.
const SPELLINGS: &[(Activation, &[&str])] = &[
    (Activation::Relu, &["relu"]),
    (Activation::Relu2, &["relu2"]),
    (Activation::Relu6, &["relu6"]),
    (Activation::LeakyRelu, &["leakyrelu", "leaky_relu"]),
    (Activation::Swish, &["swish", "silu"]),
    (Activation::Gelu, &["gelu", "gelu_python"]),
    (
        Activation::GeluTanh,
        &[
            "gelu_new",
            "gelu_pytorch_tanh",
            "gelu_python_tanh",
            "gelu_fast",
            "gelu_accurate",
        ],
    ),
    (Activation::QuickGelu, &["quick_gelu"]),
    (Activation::Gelu10, &["gelu_10"]),
    (Activation::Mish, &["mish"]),
    (Activation::Sigmoid, &["sigmoid"]),
    (Activation::HardSwish, &["hardswish"]),
    (Activation::Laplace, &["laplace"]),
    (Activation::SqrtSoftplus, &["sqrtsoftplus"]),
    (Activation::Tanh, &["tanh"]),
    (Activation::Linear, &["linear"]),
];

impl TryFrom<String> for Activation {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let lower = name.to_lowercase();
        let found = SPELLINGS
            .iter()
            .find(|(_, spellings)| spellings.contains(&lower.as_str()));
        found.map(|(activation, _)| *activation).ok_or_else(|| {
            let known: Vec<&str> = SPELLINGS.iter().map(|(_, spelling)| spelling[0]).collect();
            format!(
                "`{name}` is no non-linearity that is known here: {}",
                known.join(", ")
            )
        })
    }
}

impl From<Activation> for String {
    fn from(activation: Activation) -> Self {
        let found = SPELLINGS.iter().find(|(known, _)| *known == activation);
        found.map_or("", |(_, spellings)| spellings[0]).to_string()
    }
}

impl Activation {
    /// The function of every element of `x`.
    #[must_use]
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Relu => activation::relu(x),
            Self::Relu2 => {
                let positive = activation::relu(x);
                positive.clone() * positive
            }
            Self::Relu6 => activation::relu(x).clamp_max(6.0),
            Self::LeakyRelu => activation::leaky_relu(x, 0.01),
            Self::Swish => activation::silu(x),
            Self::Gelu => peft_ops::gelu(x),
            Self::GeluTanh => activation::gelu_approximate(x),
            Self::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
            Self::Gelu10 => peft_ops::gelu(x).clamp_max(10.0),
            Self::Mish => activation::mish(x),
            Self::Sigmoid => activation::sigmoid(x),
            Self::HardSwish => activation::hard_swish(x),
            Self::Laplace => {
                let from_mean = (x - FRAC_1_SQRT_2) * TAU.sqrt();
                (from_mean.erf() + 1.0) * 0.5
            }
            Self::SqrtSoftplus => activation::softplus(x, 1.0).sqrt(),
            Self::Tanh => activation::tanh(x),
            Self::Linear => x,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    #[test]
    fn every_spelling_is_read_and_the_first_is_written() {
        for (activation, spellings) in SPELLINGS {
            for spelling in *spellings {
                assert_eq!(
                    Activation::try_from(spelling.to_uppercase()),
                    Ok(*activation)
                );
            }
            assert_eq!(String::from(*activation), spellings[0]);
        }
        let refused = Activation::try_from("prelu".to_string()).unwrap_err();
        assert!(refused.contains("`prelu`") && refused.contains("quick_gelu"));
    }

    /// Of torch 2.15, transformers 4.57.6, at -3, -0.5, 0.25, 7 and 12.
    const EXPECTED: &[(Activation, [f64; 5])] = &[
        (Activation::Relu, [0.0, 0.0, 0.25, 7.0, 12.0]),
        (Activation::Relu2, [0.0, 0.0, 0.0625, 49.0, 144.0]),
        (Activation::Relu6, [0.0, 0.0, 0.25, 6.0, 6.0]),
        (Activation::LeakyRelu, [-0.03, -0.005, 0.25, 7.0, 12.0]),
        (
            Activation::Swish,
            [
                -0.142_277_62,
                -0.188_770_33,
                0.140_544_13,
                6.993_622_64,
                11.999_926_27,
            ],
        ),
        (
            Activation::Gelu,
            [-0.004_049_69, -0.154_268_77, 0.149_676_58, 7.0, 12.0],
        ),
        (
            Activation::GeluTanh,
            [-0.003_637_39, -0.154_285_99, 0.149_675_35, 7.0, 12.0],
        ),
        (
            Activation::QuickGelu,
            [
                -0.018_071_31,
                -0.149_611_56,
                0.151_199_65,
                6.999_953_13,
                11.999_999_98,
            ],
        ),
        (
            Activation::Gelu10,
            [-0.004_049_69, -0.154_268_77, 0.149_676_58, 7.0, 10.0],
        ),
        (
            Activation::Mish,
            [
                -0.145_647_46,
                -0.220_743_77,
                0.169_572_41,
                6.999_988_38,
                12.0,
            ],
        ),
        (
            Activation::Sigmoid,
            [
                0.047_425_87,
                0.377_540_67,
                0.562_176_5,
                0.999_088_95,
                0.999_993_86,
            ],
        ),
        (
            Activation::Tanh,
            [
                -0.995_054_75,
                -0.462_117_16,
                0.244_918_66,
                0.999_998_34,
                1.0,
            ],
        ),
        (
            Activation::HardSwish,
            [-0.0, -0.208_333_33, 0.135_416_67, 7.0, 12.0],
        ),
        (
            Activation::Laplace,
            [0.0, 0.000_009_38, 0.052_573_09, 1.0, 1.0],
        ),
        (
            Activation::SqrtSoftplus,
            [
                0.220_425_39,
                0.688_532_49,
                0.908_812_09,
                2.645_923_56,
                3.464_102_5,
            ],
        ),
        (Activation::Linear, [-3.0, -0.5, 0.25, 7.0, 12.0]),
    ];

    #[test]
    fn values_are_upstreams() {
        for (_, device) in crate::device::cpu_devices() {
            for (activation, expected) in EXPECTED {
                let x = Tensor::<1>::from_data([-3.0_f32, -0.5, 0.25, 7.0, 12.0], &device);
                let found = activation.apply(x).into_data();
                let expected = TensorData::from(expected.map(|value| value as f32));
                let tolerance = burn::tensor::Tolerance::<f32>::absolute(2e-6);
                found.assert_approx_eq(&expected, tolerance);
            }
        }
    }
}

//! The state of a bottleneck adapter at one site, and what it computes.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::{Tensor, activation};
use peft_core::method::{Adapter, HiddenAdapter, HiddenParts, SiteContext};
use peft_core::nn::AdaptedForward;
use peft_core::ops::linear;
use serde::{Deserialize, Serialize};

/// The non-linearity between the two projections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Activation {
    /// max(x, 0).
    #[default]
    Relu,
    /// x·sigmoid(x), also called SiLU.
    #[serde(alias = "silu")]
    Swish,
    /// With the exact error function.
    Gelu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Relu => activation::relu(x),
            Self::Swish => activation::silu(x),
            Self::Gelu => peft_core::ops::gelu(x),
            Self::Tanh => activation::tanh(x),
        }
    }
}

/// `h + scaling · Up(σ(Down z))`, where z is h, or h with residual and norm applied first.
#[derive(Module, Adapter, Debug)]
pub struct Bottleneck {
    /// Down-projection, `[d, d / reduction_factor]`.
    #[tensor("adapter_down.0.weight", transposed)]
    pub down: Param<Tensor<2>>,
    /// Its bias, `[d / reduction_factor]`.
    #[tensor("adapter_down.0.bias")]
    pub down_bias: Param<Tensor<1>>,
    /// Up-projection, `[d / reduction_factor, d]`.
    #[tensor("adapter_up.weight", transposed)]
    pub up: Param<Tensor<2>>,
    /// Its bias, `[d]`.
    #[tensor("adapter_up.bias")]
    pub up_bias: Param<Tensor<1>>,
    /// On the up-projection's output.
    pub dropout: Dropout,
    /// Factor of the adapter's output.
    pub scaling: f64,
    /// The non-linearity.
    #[module(skip)]
    pub activation: Activation,
    /// Whether the adapter sees the state after the model's residual and norm.
    #[module(skip)]
    pub norm_before: bool,
    /// Whether the adapter's own residual is the state before that norm.
    #[module(skip)]
    pub residual_before_norm: bool,
}

impl HiddenAdapter for Bottleneck {
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        let HiddenParts { kept, added, .. } = self.parts(hidden, context);
        kept + added
    }

    fn parts(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> HiddenParts {
        let seen = if self.norm_before {
            let summed = match &context.residual {
                Some(residual) => hidden.clone() + residual.clone(),
                None => hidden.clone(),
            };
            match context.norm {
                Some(norm) => norm(summed),
                None => summed,
            }
        } else {
            hidden.clone()
        };
        let kept = if self.residual_before_norm {
            hidden
        } else {
            seen.clone()
        };
        let down = linear(
            seen.clone(),
            self.down.val(),
            Some(self.down_bias.val()),
            None,
        );
        let down = self.activation.apply(down);
        let up = linear(down, self.up.val(), Some(self.up_bias.val()), None);
        // One pass over the state less for the usual 1.
        let scaled = (self.scaling - 1.0).abs() > f64::EPSILON;
        let up = if scaled { up * self.scaling } else { up };
        HiddenParts {
            seen,
            kept,
            added: self.dropout.adapted(up),
        }
    }
}

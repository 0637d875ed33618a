//! Dropout of a change as a whole, which LoHa and LoKr have in common.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::nn::{AdaptedForward, dropout_rate};

/// Dropout of a change as a whole, and of single output features of it. It acts on the activation
/// side and in training only.
#[derive(Module, Debug)]
pub struct ChangeDropout {
    /// Of single output features of the change: upstream's `rank_dropout`.
    pub features: Dropout,
    /// Of the whole change, of one layer in one pass: upstream's `module_dropout`.
    pub whole: Dropout,
    /// Whether the features that stay grow by the inverse of the share that stayed.
    pub rescaled: bool,
}

impl ChangeDropout {
    pub(crate) fn new(features: f64, whole: f64, rescaled: bool) -> Self {
        Self {
            features: DropoutConfig::new(features).init(),
            whole: DropoutConfig::new(whole).init(),
            rescaled,
        }
    }

    /// Whether something may be dropped, for parameters on the device of `like`.
    pub(crate) fn is_on(&self, like: &Tensor<2>) -> bool {
        like.is_autodiff() && dropout_rate(&self.features) + dropout_rate(&self.whole) > 0.0
    }

    /// A change `[out, …]` with its dropped output features; `like` is a parameter of the state.
    pub(crate) fn of_rows(&self, change: Tensor<2>, like: &Tensor<2>) -> Tensor<2> {
        let [out, _] = change.dims();
        match self.factors(out, like) {
            Some(factors) => change * factors.transpose(),
            None => change,
        }
    }

    /// What the `out` output features of the change are to be multiplied by, `[1, out]`; none where
    /// nothing is dropped.
    pub(crate) fn factors(&self, out: usize, like: &Tensor<2>) -> Option<Tensor<2>> {
        if !self.is_on(like) {
            return None;
        }
        let (device, dtype) = (like.device(), like.dtype());
        let coins = |dropout: &Dropout, count: usize| {
            let ones = Tensor::<2>::ones([1, count], (&device, dtype));
            // Dropout scales what it keeps, which is not wanted here.
            dropout.adapted(ones) * (1.0 - dropout_rate(dropout))
        };
        let features = coins(&self.features, out);
        let whole = coins(&self.whole, 1);
        if !self.rescaled {
            return Some(features * whole);
        }
        // At least one feature's, so that dropping all of them is no division by zero.
        let share = features.clone().mean().clamp_min(1.0 / out as f64);
        Some(features * whole / share.unsqueeze::<2>())
    }
}

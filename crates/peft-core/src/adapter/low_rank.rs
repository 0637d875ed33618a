//! The usual shape of a state: a change of low rank.

use burn::nn::Dropout;
use burn::tensor::{Device, Tensor};
use peft_ops::{LowRank, add_low_rank};

use crate::adapter::base::BaseLinear;
use crate::adapter::contract::{Adapter, WeightAdapter};

/// A state of a linear layer whose change is a product of two factors, and nothing else: `y = x W + b + s·(drop(x) A) B`.
/// It is a [`WeightAdapter`] by this.
pub trait LowRankAdapter: Adapter {
    /// A `[in, r]`, B `[r, out]` and s. Their own `dropout` is 0.
    fn factors(&self) -> LowRank;

    /// Dropout on A's input; on the activation side only. Default: none.
    fn dropout(&self) -> Option<&Dropout> {
        None
    }

    /// As [`WeightAdapter::computes_factors`]. Default: no.
    fn computes_factors(&self) -> bool {
        false
    }
}

impl<T: LowRankAdapter> WeightAdapter for T {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + self.factors().product().reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        let rate = self.dropout().map_or(0.0, dropout_rate);
        // A state on a device without autodiff drops nothing.
        let drops = rate > 0.0 && self.devices().iter().any(Device::is_autodiff);
        (!drops).then(|| self.factors())
    }

    fn needs_weight(&self) -> bool {
        false
    }

    fn computes_factors(&self) -> bool {
        LowRankAdapter::computes_factors(self)
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        match self.dropout() {
            None => base.forward_with(input, self.factors()),
            Some(dropout) => {
                let dropped = peft_ops::dropout(input.clone(), dropout_rate(dropout));
                add_low_rank(base.forward(input), dropped, self.factors())
            }
        }
    }
}

/// The probability with which a dropout layer drops on autodiff devices: 0 where the layer is
/// switched off, as Burn does for frozen modules.
pub fn dropout_rate(dropout: &Dropout) -> f64 {
    if dropout.training.is_enabled() {
        dropout.prob
    } else {
        0.0
    }
}

//! The usual shape of a state: a change of low rank.

use burn::nn::Dropout;
use burn::tensor::Tensor;
use peft_ops::{LowRank, add_low_rank};

use crate::adapter::contract::{Adapter, WeightAdapter};
use crate::nn::base_layer::BaseLinear;
use crate::nn::layers::{AdaptedForward, dropout_rate};

/// A state of a linear layer whose change is a product of two factors, and nothing else: `y = x W + b + s·(drop(x) A) B`.
/// It is a [`WeightAdapter`] by this.
pub trait LowRankAdapter: Adapter {
    /// A `[in, r]`, B `[r, out]` and s. Their own `dropout` is 0.
    fn factors(&self) -> LowRank;

    /// Dropout on A's input; on the activation side only. Default: none.
    fn dropout(&self) -> Option<&Dropout> {
        None
    }
}

impl<T: LowRankAdapter> WeightAdapter for T {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + self.factors().product().reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        let factors = self.factors();
        let rate = self.dropout().map_or(0.0, dropout_rate);
        let dropping = rate > 0.0 && factors.up.is_autodiff();
        (!dropping).then_some(factors)
    }

    fn linear(&self, input: Tensor<2>, inner: &BaseLinear<'_>) -> Tensor<2> {
        match self.dropout() {
            None => inner.forward_with(input, self.factors()),
            Some(dropout) => {
                let dropped = dropout.adapted(input.clone());
                add_low_rank(inner.forward(input), dropped, self.factors())
            }
        }
    }
}

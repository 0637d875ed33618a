//! What rounding does to a case.

use burn::module::{ModuleMapper, Param};
use burn::tensor::{Distribution, Tensor};

/// How far the values of a case move where every parameter, of the base too, moves by its last bit at random:
/// the largest of four draws. A calculation in `f32` rounds after every operation, so two that are both
/// right differ by some times that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding {
    /// Of the outputs.
    pub output: f32,
    /// Of the gradients, over the largest gradient; 0 where upstream's are not known.
    pub gradients: f32,
}

/// Of a case whose rounding is measured.
pub(super) const DRAWS: u64 = 4;

/// Moves every number by its last bit, up or down.
pub(super) struct LastBit;

impl ModuleMapper for LastBit {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trained = param.is_require_grad();
        param.map(|value| {
            let value = value.detach();
            let coins = value.random_like(Distribution::Bernoulli(0.5)) * 2.0 - 1.0;
            let moved = (value.clone() + value * coins * f64::from(f32::EPSILON)).detach();
            if trained { moved.require_grad() } else { moved }
        })
    }
}

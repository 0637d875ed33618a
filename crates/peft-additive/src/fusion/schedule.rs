//! What AdapterFusion does while it is trained: V stays near the identity, and the temperature falls.

use burn::tensor::Tensor;
use peft_core::method::{MethodHooks, States};

use super::state::AdapterFusion;

/// The temperature before the first step.
pub(super) const FIRST_TEMPERATURE: f64 = 50.0;

/// By so much it falls in each step, to 1.
const FALL: f64 = FIRST_TEMPERATURE / 1000.0;

/// AdapterHub's weight of the penalty.
const PENALTY: f64 = 0.01;

/// The schedule of one fusion.
#[derive(Debug)]
pub(super) struct FusionHooks {
    /// Whether V is drawn to the identity.
    pub(super) regularization: bool,
    /// Whether the temperature falls.
    pub(super) temperature: bool,
}

/// The temperature after so many steps.
pub(super) fn temperature(steps: usize) -> f64 {
    (FIRST_TEMPERATURE - FALL * steps as f64).max(1.0)
}

impl MethodHooks for FusionHooks {
    fn penalty(&self, states: &States) -> Option<Tensor<1>> {
        if !self.regularization {
            return None;
        }
        let values = states.of::<AdapterFusion>().filter_map(|(_, state)| {
            let value = state.value.as_ref()?.val();
            let identity = Tensor::<2>::eye(value.dims()[0], &value.device()).cast(value.dtype());
            Some((value - identity).square().sum())
        });
        let sum = values.reduce(|sum, value| sum + value)?;
        Some(sum * PENALTY)
    }

    fn after_step(&mut self, step: usize, states: &mut States) {
        if self.temperature {
            states.edit::<AdapterFusion>(|_, state| state.temperature = temperature(step));
        }
    }
}

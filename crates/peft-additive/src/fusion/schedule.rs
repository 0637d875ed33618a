//! What AdapterFusion does while it is trained: V stays near the identity, and the temperature falls.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use peft_core::method::{MethodHooks, States};

use super::state::AdapterFusion;

/// The temperature of a fresh fusion.
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
    /// From where the temperature falls, if it does: that before the first step.
    pub(super) first: Option<f64>,
}

/// Name of the temperature before the first step.
const FIRST: &str = "first_temperature";

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
        if let Some(first) = self.first {
            let temperature = (first - FALL * step as f64).max(1.0);
            states.edit::<AdapterFusion>(|_, state| state.temperature = temperature);
        }
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        let first = self.first.into_iter();
        first
            .map(|first| (FIRST.to_string(), TensorData::new(vec![first], [1])))
            .collect()
    }

    fn restore(
        &mut self,
        tensors: &mut BTreeMap<String, TensorData>,
        _states: &States,
    ) -> Result<(), String> {
        if self.first.is_some() {
            let first = tensors.remove(FIRST);
            let first = first.and_then(|data| data.iter::<f64>().next());
            let first = first.filter(|first| first.is_finite() && *first >= 1.0);
            let problem = || format!("tensor `{FIRST}` must hold one number, at least 1");
            self.first = Some(first.ok_or_else(problem)?);
        }
        Ok(())
    }
}

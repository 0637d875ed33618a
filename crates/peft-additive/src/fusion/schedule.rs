//! What AdapterFusion does while it is trained: V stays near the identity, and the temperature falls.

use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// The temperature behind the last step, if there was one.
    pub(super) current: Option<f64>,
    /// States that were told the temperature of a training that is resumed.
    pub(super) told: Vec<AdapterFusion>,
}

/// Name of the temperature before the first step.
const FIRST: &str = "first_temperature";

/// Name of that before the next step. Files of old lack it.
const CURRENT: &str = "current_temperature";

impl FusionHooks {
    /// Takes back what was told.
    fn clear(&mut self) {
        for state in self.told.drain(..) {
            state.resume(None);
        }
    }
}

impl Drop for FusionHooks {
    fn drop(&mut self) {
        self.clear();
    }
}

/// One number of at least 1.
fn temperature(name: &str, data: Option<&TensorData>) -> Result<f64, String> {
    let number = data.and_then(|data| data.iter::<f64>().next());
    let number = number.filter(|number| number.is_finite() && *number >= 1.0);
    number.ok_or_else(|| format!("tensor `{name}` must hold one number, at least 1"))
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
        if let Some(first) = self.first {
            let temperature = (first - FALL * step as f64).max(1.0);
            self.current = Some(temperature);
            states.edit::<AdapterFusion>(|_, state| {
                state.temperature = temperature;
                state.resumed = Arc::default();
            });
            self.clear();
        }
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        let numbers = [(FIRST, self.first), (CURRENT, self.current)];
        let numbers = numbers.into_iter().filter_map(|(name, number)| {
            let data = TensorData::new(vec![number?], [1]);
            Some((name.to_string(), data))
        });
        numbers.collect()
    }

    fn restore(
        &mut self,
        tensors: &mut BTreeMap<String, TensorData>,
        states: &States,
    ) -> Result<(), String> {
        if self.first.is_none() {
            return Ok(());
        }
        self.first = Some(temperature(FIRST, tensors.remove(FIRST).as_ref())?);
        if let Some(data) = tensors.remove(CURRENT) {
            self.current = Some(temperature(CURRENT, Some(&data))?);
            self.told = states
                .of::<AdapterFusion>()
                .map(|(_, state)| state.clone())
                .collect();
            for state in &self.told {
                state.resume(self.current);
            }
        }
        Ok(())
    }
}

//! What several schedules do in one training.

use std::collections::BTreeMap;

use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::method::{MethodHooks, States};

/// One after the other. What they remember has names of their own.
#[derive(Debug)]
pub(crate) struct Several(pub(crate) Vec<Box<dyn MethodHooks>>);

impl MethodHooks for Several {
    fn penalty(&self, states: &States) -> Option<Tensor<1>> {
        let penalties = self.0.iter().filter_map(|hooks| hooks.penalty(states));
        penalties.reduce(|sum, penalty| sum + penalty)
    }

    fn before_step(&mut self, step: usize, states: &States, gradients: &mut GradientsParams) {
        for hooks in &mut self.0 {
            hooks.before_step(step, states, gradients);
        }
    }

    fn after_step(&mut self, step: usize, states: &mut States) {
        for hooks in &mut self.0 {
            hooks.after_step(step, states);
        }
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        self.0.iter().flat_map(|hooks| hooks.tensors()).collect()
    }

    fn restore(
        &mut self,
        tensors: &mut BTreeMap<String, TensorData>,
        states: &States,
    ) -> Result<(), String> {
        let mut all = self.0.iter_mut();
        all.try_for_each(|hooks| hooks.restore(tensors, states))
    }
}

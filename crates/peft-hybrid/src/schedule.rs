//! What the methods of a union do in a training loop.

use std::collections::BTreeMap;

use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::method::{MethodHooks, States};

/// The hooks of several methods, each with its place among them. Each sees the states of its own method only.
#[derive(Debug)]
pub(crate) struct Together(pub(crate) Vec<(usize, Box<dyn MethodHooks>)>);

/// In front of what the method at a place remembers.
fn prefix(place: usize) -> String {
    format!("{place}.")
}

impl MethodHooks for Together {
    fn penalty(&self, states: &States) -> Option<Tensor<1>> {
        let penalties = self
            .0
            .iter()
            .filter_map(|(place, hooks)| hooks.penalty(&states.of_part(*place)));
        penalties.reduce(|sum, penalty| sum + penalty)
    }

    fn before_step(&mut self, step: usize, states: &States, gradients: &mut GradientsParams) {
        for (place, hooks) in &mut self.0 {
            hooks.before_step(step, &states.of_part(*place), gradients);
        }
    }

    fn after_step(&mut self, step: usize, states: &mut States) {
        for (place, hooks) in &mut self.0 {
            states.with_part(*place, |states| hooks.after_step(step, states));
        }
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        let all = self.0.iter().flat_map(|(place, hooks)| {
            let own = hooks.tensors().into_iter();
            own.map(|(name, data)| (prefix(*place) + &name, data))
        });
        all.collect()
    }

    fn restore(
        &mut self,
        tensors: &mut BTreeMap<String, TensorData>,
        states: &States,
    ) -> Result<(), String> {
        for (place, hooks) in &mut self.0 {
            let prefix = prefix(*place);
            let of = |name: &String| name.strip_prefix(&prefix).map(str::to_string);
            let mut own: BTreeMap<String, TensorData> = tensors
                .iter()
                .filter_map(|(name, data)| Some((of(name)?, data.clone())))
                .collect();
            tensors.retain(|name, _| of(name).is_none());
            hooks.restore(&mut own, &states.of_part(*place))?;
            // What is left over is refused by whoever gave it.
            tensors.extend(
                own.into_iter()
                    .map(|(name, data)| (prefix.clone() + &name, data)),
            );
        }
        Ok(())
    }
}

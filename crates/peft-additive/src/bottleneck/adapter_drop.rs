//! AdapterDrop: the adapters of the first blocks are left out, some of them at random while training, or all of them
//! when the model is used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Tensor, TensorData};
use peft_core::method::{MethodHooks, MethodInfo, States};
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule, Result};

use super::plan::block;
use super::state::Bottleneck;

/// Whether an adapter is left out. Copies of a state share what a training has drawn, until its next step.
#[derive(Clone, Debug, Default)]
pub struct Skip {
    /// In every forward pass.
    always: bool,
    /// In forward passes with autodiff.
    while_training: Arc<AtomicBool>,
}

impl Skip {
    pub(crate) fn is_on(&self, hidden: &Tensor<3>) -> bool {
        self.always || (hidden.is_autodiff() && self.while_training.load(Ordering::Relaxed))
    }
}

/// Leaves out the adapters of the first `blocks` blocks of the adapter `name` from now on: faster, and after a training
/// with `adapter_drop` hardly worse (Rücklé et al. 2021, section 3). With 0 all are there again. A saved adapter still
/// has them all.
///
/// # Errors
///
/// [`Error::UnknownAdapter`](peft_core::Error::UnknownAdapter), [`Error::Merged`](peft_core::Error::Merged).
pub fn drop_adapters<M: PeftModule>(model: &M, name: &str, blocks: usize) -> Result<M> {
    model.edit_adapter::<Bottleneck>(name, |place, state| {
        state.skip.always = is_below(place, blocks);
    })
}

fn is_below(place: &str, blocks: usize) -> bool {
    block(place).is_some_and(|block| block < blocks)
}

/// Draws for each step how many blocks go without adapters (Rücklé et al. 2021, section 3.2).
#[derive(Debug)]
pub(crate) struct AdapterDropSchedule {
    /// At most so many.
    most: usize,
    steps: usize,
    seed: u64,
    done: usize,
}

impl AdapterDropSchedule {
    /// # Errors
    ///
    /// [`Error::Config`] if a step could leave out all adapters, and there would be nothing to train.
    pub(crate) fn new(
        info: &MethodInfo,
        most: usize,
        (steps, seed): (usize, u64),
        states: &States,
    ) -> Result<Self> {
        let mut places = states.of::<Bottleneck>();
        if places.all(|(place, _)| is_below(place, most)) {
            let expected = "so few that the last block keeps its adapter";
            return Err(Error::config(info.title, "adapter_drop", most, expected));
        }
        let schedule = Self {
            most,
            steps,
            seed,
            done: 0,
        };
        schedule.mark(states);
        Ok(schedule)
    }

    /// How many blocks go without adapters in a step; steps count from 1. None behind the last.
    fn blocks(&self, step: usize) -> usize {
        if step > self.steps {
            return 0;
        }
        // Vigna's splitmix64.
        let mut bits = self
            .seed
            .wrapping_add((step as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let drawn = u128::from(bits) * (self.most as u128 + 1);
        (drawn >> 64) as usize
    }

    /// Says to the states what was drawn for the next step.
    fn mark(&self, states: &States) {
        let blocks = self.blocks(self.done + 1);
        for (place, state) in states.of::<Bottleneck>() {
            let skip = &state.skip.while_training;
            skip.store(is_below(place, blocks), Ordering::Relaxed);
        }
    }
}

impl MethodHooks for AdapterDropSchedule {
    fn after_step(&mut self, step: usize, states: &mut States) {
        self.done = step;
        let blocks = self.blocks(step + 1);
        states.edit::<Bottleneck>(|place, state| {
            state.skip.while_training = Arc::new(AtomicBool::new(is_below(place, blocks)));
        });
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        let done = TensorData::new(vec![self.done as f32], [1]);
        BTreeMap::from([("dropped_until".to_string(), done)])
    }

    fn restore(
        &mut self,
        tensors: &mut BTreeMap<String, TensorData>,
        states: &States,
    ) -> Result<(), String> {
        let done = tensors.remove("dropped_until");
        let done = done.and_then(|data| data.iter::<f32>().next());
        self.done = done.ok_or("tensor `dropped_until` is missing")? as usize;
        self.mark(states);
        Ok(())
    }
}

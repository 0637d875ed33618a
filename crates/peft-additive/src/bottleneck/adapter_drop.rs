//! AdapterDrop: the adapters of the first blocks are left out, some of them at random while training, or all of them
//! when the model is used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::TensorData;
use peft_core::method::{MethodHooks, MethodInfo, States};
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule, Result};

use super::block::block;
use super::state::Bottleneck;

/// Leaves out the adapters of the first `blocks` blocks of the adapter `name` from now on: faster, and after a training
/// with `adapter_drop` hardly worse (Rücklé et al. 2021, section 3). With 0 all are there again. A saved adapter still
/// has them all.
///
/// # Errors
///
/// [`Error::UnknownAdapter`](peft_core::Error::UnknownAdapter), [`Error::Merged`](peft_core::Error::Merged); unless
/// `blocks` is 0, [`Error::Config`](peft_core::Error::Config) if the adapter is no bottleneck adapter, or if the model's
/// names do not tell the number of any block that has one.
pub fn drop_adapters<M: PeftModule>(model: &M, name: &str, blocks: usize) -> Result<M> {
    let (mut is_bottleneck, mut has_numbers) = (false, false);
    let dropped = model.edit_adapter::<Bottleneck>(name, |place, state| {
        is_bottleneck = true;
        has_numbers |= block(place).is_some();
        state.skip.always = is_below(place, blocks);
    })?;
    let title = "AdapterDrop";
    if blocks == 0 || has_numbers {
        Ok(dropped)
    } else if is_bottleneck {
        let expected = format!(
            "0: the model's names do not tell the blocks of the adapter `{name}`, as `layer.3` would"
        );
        Err(Error::config(title, "blocks", blocks, expected))
    } else {
        let expected = "the name of a bottleneck adapter";
        Err(Error::config(title, "name", name, expected))
    }
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
    /// What the states of the training's model know of the next step.
    told: Vec<Arc<AtomicBool>>,
}

impl AdapterDropSchedule {
    /// The first step leaves out none: nothing is told to the states before it is done, as other copies of the model
    /// have them, too.
    ///
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
        // What another training, which still holds its hooks, has drawn for the same model.
        for (_, state) in states.of::<Bottleneck>() {
            state.skip.while_training.store(false, Ordering::Relaxed);
        }
        Ok(Self {
            most,
            steps,
            seed,
            done: 0,
            told: Vec::new(),
        })
    }

    /// How many blocks go without adapters in a step; steps count from 1. None in the first, by whose gradients
    /// SNIP prunes all adapters, and none behind the last.
    fn blocks(&self, step: usize) -> usize {
        if step <= 1 || step > self.steps {
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

    /// Takes back what was drawn, in all copies of the model.
    fn clear(&mut self) {
        for skip in self.told.drain(..) {
            skip.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for AdapterDropSchedule {
    fn drop(&mut self) {
        self.clear();
    }
}

impl MethodHooks for AdapterDropSchedule {
    fn after_step(&mut self, step: usize, states: &mut States) {
        self.clear();
        self.done = step;
        let blocks = self.blocks(step + 1);
        states.edit::<Bottleneck>(|place, state| {
            let skip = Arc::new(AtomicBool::new(is_below(place, blocks)));
            state.skip.while_training = Arc::clone(&skip);
            self.told.push(skip);
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
        let blocks = self.blocks(self.done + 1);
        for (place, state) in states.of::<Bottleneck>() {
            let skip = &state.skip.while_training;
            skip.store(is_below(place, blocks), Ordering::Relaxed);
            self.told.push(Arc::clone(skip));
        }
        Ok(())
    }
}

//! What a method does in a training loop besides being trained.

use std::collections::BTreeMap;
use std::fmt::Debug;

use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};

use crate::adapter::any_adapter::AnyAdapter;
use crate::adapter::contract::Adapter;
use crate::error::Result;

/// What a method does in a training loop besides being trained: [`Method::schedule`](crate::method::Method::schedule)
/// gives it, [`TrainingHooks`](crate::TrainingHooks) calls it. Every hook has a default that does nothing.
///
/// Steps are the optimizer's and count from 1, so that the last is the number of steps that
/// `Method::schedule` was told. A schedule that draws random numbers draws them from a seed of its own
/// and the step, so that a training that is resumed draws the same.
pub trait MethodHooks: Debug + Send {
    /// What is added to the loss, of shape `[1]`, on the autodiff side.
    fn penalty(&self, _states: &States) -> Option<Tensor<1>> {
        None
    }

    /// Called before the optimizer's step number `step`, with the gradients that it will get: to look at
    /// them, or to change them. They are found by the id of a parameter.
    fn before_step(&mut self, _step: usize, _states: &States, _gradients: &mut GradientsParams) {}

    /// Called after the optimizer's step number `step`, with the states that it left, which may be changed.
    ///
    /// A parameter is changed by `Param::map`, which keeps its id, so that the optimizer's moments stay
    /// with their values; the new value has to be a leaf.
    fn after_step(&mut self, _step: usize, _states: &mut States) {}

    /// What the schedule has to remember from one step to the next: float tensors by name, for
    /// [`TrainingHooks::save`](crate::TrainingHooks::save). What is no tensor is one of a single element.
    fn tensors(&self) -> BTreeMap<String, TensorData> {
        BTreeMap::new()
    }

    /// Takes up what [`tensors`](Self::tensors) gave, in a schedule that was just made. What it takes it
    /// removes from `tensors`; what is left over is refused.
    ///
    /// # Errors
    ///
    /// What is missing or does not fit, in words.
    fn restore(
        &mut self,
        _tensors: &mut BTreeMap<String, TensorData>,
        _states: &States,
    ) -> Result<(), String> {
        Ok(())
    }
}

/// An adapter's state at one place.
#[derive(Clone, Debug)]
pub(crate) struct PlacedState {
    /// Upstream's name of the layer or site.
    pub(crate) name: String,
    /// Which part of the method planned it.
    pub(crate) part: usize,
    pub(crate) adapter: AnyAdapter,
}

/// The states of one adapter at all of its places, of whatever types they are.
///
/// They are copies that share ids and autodiff leaves with the model's.
#[derive(Debug)]
pub struct States {
    pub(crate) states: Vec<PlacedState>,
    changed: bool,
}

impl States {
    /// Those at these places, in the order of the model.
    pub(crate) fn new(states: Vec<PlacedState>) -> Self {
        Self {
            states,
            changed: false,
        }
    }

    /// The states of type `A`, with the upstream names of their places, in the order of the model.
    pub fn of<A: Adapter>(&self) -> impl Iterator<Item = (&str, &A)> {
        self.states.iter().filter_map(|placed| {
            let state = placed.adapter.module().as_any().downcast_ref::<A>()?;
            Some((placed.name.as_str(), state))
        })
    }

    /// Changes the states of type `A`; `change` is told the upstream names of their places.
    pub fn edit<A: Adapter>(&mut self, mut change: impl FnMut(&str, &mut A)) {
        for placed in &mut self.states {
            let state = placed.adapter.module_mut().as_any_mut();
            if let Some(state) = state.downcast_mut::<A>() {
                change(&placed.name, state);
                self.changed = true;
            }
        }
    }

    /// Those that one part of a method planned ([`Plan::begin_part`](crate::method::Plan::begin_part)): for a method that
    /// is several in one, each of which shall see its own.
    #[must_use]
    pub fn of_part(&self, part: usize) -> Self {
        let own = self.states.iter().filter(|placed| placed.part == part);
        Self::new(own.cloned().collect())
    }

    /// Lets `change` work on the states that one part of a method planned, as [`of_part`](Self::of_part) gives them.
    pub fn with_part<T>(&mut self, part: usize, change: impl FnOnce(&mut Self) -> T) -> T {
        let mut own = self.of_part(part);
        let result = change(&mut own);
        self.changed |= own.changed;
        let places = self.states.iter_mut().filter(|placed| placed.part == part);
        for (placed, changed) in places.zip(own.states) {
            *placed = changed;
        }
        result
    }

    /// Whether a state was changed.
    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }
}

//! What a training tells the states of its model.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a state knows of the training that it is in.
///
/// A training gets a model by reference, so that what it tells the states before its first step is known to all copies of the
/// model. Behind each step it gives the states of its own model a new one. So two trainings that begin with copies of one
/// model know nothing of each other, nor does a copy of what a step has left.
#[derive(Clone, Debug)]
pub(crate) struct Told<T>(Arc<Mutex<Known<T>>>);

#[derive(Debug)]
struct Known<T> {
    /// How many trainings have told it and not gone on.
    trainings: usize,
    value: Option<T>,
}

impl<T> Default for Told<T> {
    fn default() -> Self {
        Self::of(0, None)
    }
}

impl<T> Told<T> {
    fn of(trainings: usize, value: Option<T>) -> Self {
        Self(Arc::new(Mutex::new(Known { trainings, value })))
    }

    /// Of a training's own model.
    pub(crate) fn new(value: Option<T>) -> Self {
        Self::of(1, value)
    }

    fn locked(&self) -> MutexGuard<'_, Known<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A training begins.
    pub(crate) fn begin(&self, value: T) {
        let mut known = self.locked();
        known.trainings += 1;
        known.value = Some(value);
    }

    /// A training that has begun tells something else.
    pub(crate) fn tell(&self, value: Option<T>) {
        self.locked().value = value;
    }

    /// A training goes on with a new one, or ends. Others that begin with the same copies know `for_others`.
    pub(crate) fn end(&self, for_others: T) {
        let mut known = self.locked();
        known.trainings = known.trainings.saturating_sub(1);
        known.value = (known.trainings > 0).then_some(for_others);
    }

    /// What is known, where a training runs.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.locked().value.as_mut().map(look)
    }

    /// Whether a training runs.
    pub(crate) fn runs(&self) -> bool {
        self.locked().value.is_some()
    }
}

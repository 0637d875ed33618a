//! What the states of one adapter hand on: from place to place in a forward pass, and from pass to pass of one text.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;

/// What the states of one adapter have in common, and no other adapter has: the address of what they hand on.
///
/// Make one in [`Method::plan`](crate::method::Method::plan), and give each state a clone, in a field with
/// `#[module(skip)]`.
#[derive(Clone, Debug, Default)]
pub struct Lane(Arc<()>);

impl PartialEq for Lane {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

trait Value: Any + Send + Sync {
    fn boxed(&self) -> Box<dyn Value>;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

impl<T: Any + Clone + Send + Sync> Value for T {
    fn boxed(&self) -> Box<dyn Value> {
        Box::new(self.clone())
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Values by their lane and place.
#[derive(Default)]
struct Values(Vec<(Lane, usize, Box<dyn Value>)>);

impl Values {
    fn put<T: Any + Clone + Send + Sync>(&mut self, lane: &Lane, place: usize, value: T) {
        let other = |(of, at, _): &(Lane, usize, Box<dyn Value>)| of != lane || *at != place;
        self.0.retain(other);
        self.0.push((lane.clone(), place, Box::new(value)));
    }

    fn take<T: Any>(&mut self, lane: &Lane, place: usize) -> Option<T> {
        let mut values = self.0.iter();
        let at = values.position(|(of, at, _)| of == lane && *at == place)?;
        let (_, _, value) = self.0.swap_remove(at);
        value.into_any().downcast().ok().map(|value| *value)
    }
}

fn locked(values: &Mutex<Values>) -> MutexGuard<'_, Values> {
    values.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What adapters keep of a text from one forward pass to the next, as a cache of keys and values does for the layers:
/// the model that goes on with a text puts it into the context of each pass.
///
/// A clone goes on alone, with what there was.
#[derive(Default)]
pub struct Memory(Arc<Mutex<Values>>);

impl Memory {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a value of an adapter at one of its places, in the place of what was there.
    pub fn put<T: Any + Clone + Send + Sync>(&self, lane: &Lane, place: usize, value: T) {
        locked(&self.0).put(lane, place, value);
    }

    /// Takes what the adapter has kept at this place, if it is of this type.
    pub fn take<T: Any>(&self, lane: &Lane, place: usize) -> Option<T> {
        locked(&self.0).take(lane, place)
    }

    /// The same memory.
    pub(crate) fn shared(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        let values = locked(&self.0);
        let copies = values
            .0
            .iter()
            .map(|(lane, place, value)| (lane.clone(), *place, value.as_ref().boxed()));
        Self(Arc::new(Mutex::new(Values(copies.collect()))))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} values)", locked(&self.0).0.len())
    }
}

/// What flows from place to place in one forward pass. A clone is for another pass, and has nothing in it.
#[derive(Default)]
pub(crate) struct Pass(Arc<Mutex<Flow>>);

#[derive(Default)]
struct Flow {
    values: Values,
    used: bool,
    scored: Vec<(Tensor<3>, f64)>,
}

impl Pass {
    fn locked(&self) -> MutexGuard<'_, Flow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put<T: Any + Clone + Send + Sync>(&self, lane: &Lane, value: T) {
        let mut flow = self.locked();
        flow.values.put(lane, 0, value);
        flow.used = true;
    }

    pub(crate) fn take<T: Any>(&self, lane: &Lane) -> Option<T> {
        self.locked().values.take(lane, 0)
    }

    /// Whether something was handed on.
    pub(crate) fn is_used(&self) -> bool {
        self.locked().used
    }

    pub(crate) fn score_too(&self, state: Tensor<3>, weight: f64) {
        self.locked().scored.push((state, weight));
    }

    pub(crate) fn take_scored(&self) -> Vec<(Tensor<3>, f64)> {
        std::mem::take(&mut self.locked().scored)
    }

    /// The same pass.
    pub(crate) fn shared(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Clone for Pass {
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_by_lane_place_and_type() {
        let memory = Memory::new();
        let (one, other) = (Lane::default(), Lane::default());
        memory.put(&one, 0, 1_usize);
        memory.put(&one, 1, 2_usize);
        memory.put(&other, 0, "text");
        memory.put(&one, 0, 3_usize);
        let copy = memory.clone();
        assert_eq!(memory.take::<usize>(&one, 0), Some(3));
        assert_eq!(memory.take::<usize>(&one, 0), None);
        assert_eq!(memory.take::<&str>(&other, 0), Some("text"));
        assert_eq!(memory.take::<usize>(&one.clone(), 1), Some(2));
        // The copy has what there was, and what it gets does not come back.
        assert_eq!(copy.take::<usize>(&one, 0), Some(3));
        copy.put(&one, 5, 7_usize);
        assert_eq!(memory.take::<usize>(&one, 5), None);
        assert_eq!(memory.shared().take::<usize>(&one, 0), None);
    }

    #[test]
    fn a_clone_of_a_pass_is_another_pass() {
        let pass = Pass::default();
        let lane = Lane::default();
        assert!(!pass.is_used());
        pass.put(&lane, 1_usize);
        assert!(pass.is_used() && !pass.clone().is_used());
        assert_eq!(pass.clone().take::<usize>(&lane), None);
        assert_eq!(pass.shared().take::<usize>(&lane), Some(1));
        assert_eq!(pass.take::<usize>(&lane), None);
    }
}

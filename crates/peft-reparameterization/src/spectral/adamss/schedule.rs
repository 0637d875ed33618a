//! AdaMSS's schedule: which groups are worth being trained.

use std::collections::BTreeMap;

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::method::{MethodHooks, States};

use crate::math::importance::Importance;
use crate::spectral::adamss::state::AdamssLinear;

/// A group of a layer: the layer's name, and its number.
type Group = (String, usize);

/// What both factors are called in what a training remembers.
const FACTORS: [&str; 2] = ["A", "B"];

/// Settings of the schedule; their names and meanings are those of the configuration.
#[derive(Clone, Debug)]
pub(super) struct Allocation {
    pub(super) asa_target_subspaces: usize,
    pub(super) init_warmup: usize,
    pub(super) final_warmup: usize,
    pub(super) mask_interval: usize,
    pub(super) asa_importance_beta: f64,
    pub(super) asa_uncertainty_beta: f64,
    pub(super) asa_schedule_exponent: f64,
}

/// Adaptive subspace allocation (Zheng et al. 2025; upstream's `update_and_allocate`).
///
/// It watches how much the loss depends on each group's factors, and stops training those of least importance over all
/// layers, more and more of them. What such a group has learned stays.
#[derive(Debug)]
pub(super) struct AdamssSchedule {
    allocation: Allocation,
    /// Groups of all layers.
    total: usize,
    /// Of both factors, from the step that is being made.
    gradients: BTreeMap<Group, [Tensor<2>; 2]>,
    /// Of both factors, since the last choice.
    importance: BTreeMap<Group, [Importance; 2]>,
    /// Whether each group of a layer is trained, by layer; empty before the first choice.
    trained: BTreeMap<String, Vec<bool>>,
}

/// The ids of a group's factors.
fn ids(state: &AdamssLinear, group: usize) -> [ParamId; 2] {
    [state.subspaces.a[group].id(), state.subspaces.b[group].id()]
}

impl AdamssSchedule {
    pub(super) fn new(allocation: Allocation, states: &States) -> Self {
        let layers = states.of::<AdamssLinear>();
        Self {
            allocation,
            total: layers.map(|(_, state)| state.subspaces.a.len()).sum(),
            gradients: BTreeMap::new(),
            importance: BTreeMap::new(),
            trained: BTreeMap::new(),
        }
    }

    /// Upstream counts steps from 0.
    fn is_within(&self, step: usize) -> bool {
        (self.allocation.init_warmup..=self.allocation.final_warmup).contains(&step)
    }

    /// How many groups may be trained after a step, counted from 0.
    fn budget(&self, step: usize) -> usize {
        let [begin, end] = [self.allocation.init_warmup, self.allocation.final_warmup];
        let target = self.allocation.asa_target_subspaces;
        if self.total <= target {
            return self.total;
        }
        let left = 1.0 - (step - begin) as f64 / (end - begin) as f64;
        let more = (self.total - target) as f64 * left.powf(self.allocation.asa_schedule_exponent);
        target + more as usize
    }

    fn is_trained(&self, place: &str, group: usize) -> bool {
        let layer = self.trained.get(place);
        layer.is_none_or(|groups| groups[group])
    }

    /// Takes the gradients that were seen last into the importances. As upstream, it multiplies them with the values that
    /// the optimizer has updated.
    fn smooth(&mut self, states: &States) {
        let betas = [
            self.allocation.asa_importance_beta,
            self.allocation.asa_uncertainty_beta,
        ];
        for (place, state) in states.of::<AdamssLinear>() {
            for group in 0..state.subspaces.a.len() {
                let key = (place.to_string(), group);
                let Some([of_a, of_b]) = self.gradients.remove(&key) else {
                    continue;
                };
                let [a, b] = [&state.subspaces.a[group], &state.subspaces.b[group]];
                let seen = [(a, of_a), (b, of_b)]
                    .map(|(value, gradient)| (value.val().inner() * gradient).abs());
                let before = self.importance.remove(&key);
                let [before_a, before_b] =
                    before.unwrap_or_else(|| seen.each_ref().map(Importance::none));
                let [of_a, of_b] = seen;
                let after = [
                    before_a.after_by_old_mean(of_a, betas),
                    before_b.after_by_old_mean(of_b, betas),
                ];
                self.importance.insert(key, after);
            }
        }
    }

    /// Goes on training the `budget` groups of most importance, among those that have one.
    fn choose(&mut self, states: &States, budget: usize) {
        let mean = |importance: &Importance| importance.score().mean().into_scalar::<f32>();
        let importance = std::mem::take(&mut self.importance).into_iter();
        let mut scores: Vec<(Group, f32)> = importance
            .map(|(group, [a, b])| (group, mean(&a) + mean(&b)))
            .collect();
        scores.sort_by(|one, other| other.1.total_cmp(&one.1));
        for (place, state) in states.of::<AdamssLinear>() {
            let all = || vec![true; state.subspaces.a.len()];
            self.trained.entry(place.to_string()).or_insert_with(all);
        }
        for ((place, group), _) in scores.into_iter().skip(budget) {
            if let Some(layer) = self.trained.get_mut(&place) {
                layer[group] = false;
            }
        }
    }
}

impl MethodHooks for AdamssSchedule {
    fn before_step(&mut self, step: usize, states: &States, gradients: &mut GradientsParams) {
        self.gradients.clear();
        let is_within = self.is_within(step - 1);
        for (place, state) in states.of::<AdamssLinear>() {
            for group in 0..state.subspaces.a.len() {
                let ids = ids(state, group);
                if !self.is_trained(place, group) {
                    // Without a gradient the optimizer leaves a parameter alone.
                    for id in ids {
                        gradients.remove::<2>(id);
                    }
                } else if is_within && let [Some(a), Some(b)] = ids.map(|id| gradients.get::<2>(id))
                {
                    self.gradients.insert((place.to_string(), group), [a, b]);
                }
            }
        }
    }

    fn after_step(&mut self, step: usize, states: &mut States) {
        let step = step - 1;
        if !self.is_within(step) {
            return;
        }
        self.smooth(states);
        if step.is_multiple_of(self.allocation.mask_interval) {
            self.choose(states, self.budget(step));
        }
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        let mut tensors = BTreeMap::new();
        for ((place, group), importance) in &self.importance {
            for (factor, importance) in FACTORS.iter().zip(importance) {
                importance.store(&format!("{place}.{factor}.{group}"), &mut tensors);
            }
        }
        for (place, trained) in &self.trained {
            let values = trained.iter().map(|&trained| f32::from(u8::from(trained)));
            let data = TensorData::new(values.collect(), [trained.len()]);
            tensors.insert(format!("{place}.trained"), data);
        }
        tensors
    }

    fn restore(
        &mut self,
        tensors: &mut BTreeMap<String, TensorData>,
        states: &States,
    ) -> Result<(), String> {
        for (place, state) in states.of::<AdamssLinear>() {
            let expected = state.subspaces.a.len();
            if let Some(trained) = tensors.remove(&format!("{place}.trained")) {
                let trained: Vec<bool> = trained.iter::<f32>().map(|value| value != 0.0).collect();
                if trained.len() != expected {
                    let found = trained.len();
                    return Err(format!(
                        "tensor `{place}.trained` has {found} elements, the model needs {expected}"
                    ));
                }
                self.trained.insert(place.to_string(), trained);
            }
            for group in 0..expected {
                let keys = FACTORS.map(|factor| format!("{place}.{factor}.{group}"));
                // None has an importance right after a choice, and none that is no longer trained.
                if !tensors.contains_key(&format!("{}.mean", keys[0])) {
                    continue;
                }
                let [a, b] = [&state.subspaces.a[group], &state.subspaces.b[group]]
                    .map(|factor| factor.val().inner());
                let importance = [
                    Importance::stored(&keys[0], tensors, &a)?,
                    Importance::stored(&keys[1], tensors, &b)?,
                ];
                self.importance
                    .insert((place.to_string(), group), importance);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(total: usize) -> AdamssSchedule {
        let allocation = Allocation {
            asa_target_subspaces: 4,
            init_warmup: 2,
            final_warmup: 6,
            mask_interval: 100,
            asa_importance_beta: 0.85,
            asa_uncertainty_beta: 0.85,
            asa_schedule_exponent: 3.0,
        };
        AdamssSchedule {
            allocation,
            total,
            gradients: BTreeMap::new(),
            importance: BTreeMap::new(),
            trained: BTreeMap::new(),
        }
    }

    /// AdamssModel._schedule_threshold
    #[test]
    fn the_budget_falls_as_upstreams() {
        let budgets: Vec<usize> = (2..=6).map(|step| schedule(20).budget(step)).collect();
        assert_eq!(budgets, [20, 10, 6, 4, 4]);
        assert_eq!(schedule(3).budget(4), 3);
    }
}

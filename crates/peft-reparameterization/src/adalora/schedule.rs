//! AdaLoRA's schedule: which singular values are worth their place.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::method::{MethodHooks, States};
use peft_core::{Error, Result};
use serde_json::{Map, Value};

use crate::adalora::config::{ADALORA, AdaLoraConfig};
use crate::adalora::state::AdaLora;
use crate::math::importance::Importance;
use crate::math::orthogonality::beside_identity;

/// The parameters of a layer, as they are called in what a training remembers.
const PARAMETERS: [&str; 3] = ["lora_A", "lora_E", "lora_B"];

/// AdaLoRA's schedule of ranks (Zhang et al. 2023, sections 3.2 and 3.3; upstream's `RankAllocator`).
///
/// It watches how much the loss depends on every singular value, and sets those of least importance over
/// all layers to zero, more and more of them until `target_r` is left on the average.
#[derive(Debug)]
pub(crate) struct AdaLoraSchedule {
    /// The last step without masking.
    tinit: usize,
    /// The step that fixes the mask.
    last: usize,
    delta_t: usize,
    betas: [f64; 2],
    orth_reg_weight: f64,
    /// Singular values over all layers, at the start and at the end.
    initial: usize,
    target: usize,
    /// Of A, E and B, by layer, from the step that is being made.
    gradients: BTreeMap<String, [Tensor<2>; 3]>,
    /// Of A, E and B, by layer.
    importance: BTreeMap<String, [Importance; 3]>,
    /// Which singular values are left, by layer; empty before the first allocation.
    kept: BTreeMap<String, Vec<bool>>,
}

impl AdaLoraSchedule {
    /// The schedule for a training of `steps` steps.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if there are not more steps than `tinit` and `tfinal` together, or if `target_r` is
    /// above `init_r`.
    pub(crate) fn new(config: &AdaLoraConfig, steps: usize, states: &States) -> Result<Self> {
        let refuse = |field, value: usize, expected: &str| {
            Err(Error::config(ADALORA.title, field, value, expected))
        };
        let [tinit, tfinal, delta_t] = config.phases(steps);
        if tinit.saturating_add(tfinal) >= steps {
            return refuse("total_step", steps, "more than tinit + tfinal");
        }
        if config.target_r > config.init_r {
            return refuse("target_r", config.target_r, "at most init_r");
        }
        let ranks = states.of::<AdaLora>().map(|(_, state)| state.rank());
        Ok(Self {
            tinit,
            last: steps - tfinal,
            delta_t,
            betas: [config.beta1, config.beta2],
            orth_reg_weight: config.orth_reg_weight,
            initial: ranks.sum(),
            target: config.target_r * states.of::<AdaLora>().count(),
            gradients: BTreeMap::new(),
            importance: BTreeMap::new(),
            kept: BTreeMap::new(),
        })
    }

    /// How many singular values may be left after a step, over all layers: all until `tinit`, then fewer by
    /// a cubic law, `target_r` a layer when `tfinal` steps are left.
    fn budget(&self, step: usize) -> usize {
        if step <= self.tinit {
            return self.initial;
        }
        if step > self.last {
            return self.target;
        }
        let left = 1.0 - (step - self.tinit) as f64 / (self.last - self.tinit) as f64;
        let (initial, target) = (self.initial as f64, self.target as f64);
        ((initial - target) * left.powf(3.0) + target) as usize
    }

    /// Takes the gradients that were seen last into the importances. As upstream, it multiplies them with the
    /// values that the optimizer has updated.
    fn smooth(&mut self, states: &States) {
        for (place, state) in states.of::<AdaLora>() {
            let Some([a, e, b]) = self.gradients.remove(place) else {
                continue;
            };
            let sensitivities = [(&state.lora_a, a), (&state.lora_e, e), (&state.lora_b, b)]
                .map(|(value, gradient)| (value.val().inner() * gradient).abs());
            let before = self
                .importance
                .remove(place)
                .unwrap_or_else(|| sensitivities.each_ref().map(Importance::none));
            let mut sensitivities = sensitivities.into_iter();
            let after = before.map(|importance| match sensitivities.next() {
                Some(sensitivity) => importance.after(sensitivity, self.betas),
                None => importance,
            });
            self.importance.insert(place.to_string(), after);
        }
    }

    /// The importance of each singular value of a layer: its own, and the means of its vectors'.
    fn scores(&self, place: &str, rank: usize) -> Vec<f32> {
        // A layer without a gradient is worth nothing.
        let Some([a, e, b]) = self.importance.get(place) else {
            return vec![0.0; rank];
        };
        let vectors: Tensor<1> =
            a.score().mean_dim(0).reshape([rank]) + b.score().mean_dim(1).reshape([rank]);
        let value: Tensor<1> = e.score().reshape([rank]);
        (value + vectors).into_data().iter::<f32>().collect()
    }

    /// Those of most importance, as many as the budget allows.
    fn choose(&self, states: &States, budget: usize) -> BTreeMap<String, Vec<bool>> {
        let scores: Vec<(&str, Vec<f32>)> = states
            .of::<AdaLora>()
            .filter(|(_, state)| state.rank() > 0)
            .map(|(place, state)| (place, self.scores(place, state.rank())))
            .collect();
        let all = scores.iter().flat_map(|(_, scores)| scores);
        let mut all: Vec<f32> = all.copied().collect();
        all.sort_by(f32::total_cmp);
        let over = all.len().saturating_sub(budget);
        let threshold = over.checked_sub(1).map(|place| all[place]);
        // Those that equal the threshold go with it.
        let stays = |score: f32| threshold.is_none_or(|threshold| score > threshold);
        scores
            .into_iter()
            .map(|(place, scores)| (place.to_string(), scores.into_iter().map(stays).collect()))
            .collect()
    }
}

impl MethodHooks for AdaLoraSchedule {
    /// `orth_reg_weight` times the mean, over all A and B, of ‖AᵀA − I‖ and ‖B Bᵀ − I‖ (Frobenius norms;
    /// section 3.1).
    fn penalty(&self, states: &States) -> Option<Tensor<1>> {
        if self.orth_reg_weight == 0.0 {
            return None;
        }
        let (_, first) = states.of::<AdaLora>().next()?;
        let first = first.lora_a.val();
        let mut sum = Tensor::<1>::zeros([1], (&first.device(), first.dtype()));
        let layers = states.of::<AdaLora>();
        for (_, state) in layers.filter(|(_, state)| state.rank() > 0) {
            let (a, b) = (state.lora_a.val(), state.lora_b.val());
            sum = sum
                + beside_identity(a.clone().transpose().matmul(a))
                + beside_identity(b.clone().matmul(b.transpose()));
        }
        let layers = states.of::<AdaLora>().count();
        Some(sum * (self.orth_reg_weight / (2 * layers) as f64))
    }

    fn before_step(&mut self, step: usize, states: &States, gradients: &mut GradientsParams) {
        self.gradients.clear();
        if step >= self.last {
            return;
        }
        for (place, state) in states.of::<AdaLora>() {
            let found = [&state.lora_a, &state.lora_e, &state.lora_b]
                .map(|param| gradients.get::<2>(param.id));
            if let [Some(a), Some(e), Some(b)] = found {
                self.gradients.insert(place.to_string(), [a, e, b]);
            }
        }
    }

    fn after_step(&mut self, step: usize, states: &mut States) {
        let due = match step.cmp(&self.last) {
            Ordering::Less => {
                self.smooth(states);
                step > self.tinit && step.is_multiple_of(self.delta_t)
            }
            Ordering::Equal => true,
            Ordering::Greater => false,
        };
        if due && !self.importance.is_empty() {
            self.kept = self.choose(states, self.budget(step));
        }
        let fixed = step >= self.last;
        if fixed {
            self.importance.clear();
        }
        if self.kept.is_empty() || !(due || fixed) {
            return;
        }
        states.edit::<AdaLora>(|place, state| {
            if let Some(kept) = self.kept.get(place) {
                state.mask(kept);
                if fixed {
                    state.kept = Some(kept.clone());
                }
            }
        });
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        let mut tensors = BTreeMap::new();
        for (place, importance) in &self.importance {
            for (parameter, importance) in PARAMETERS.iter().zip(importance) {
                importance.store(&format!("{place}.{parameter}"), &mut tensors);
            }
        }
        for (place, kept) in &self.kept {
            let values: Vec<f32> = kept.iter().map(|&kept| f32::from(u8::from(kept))).collect();
            let data = TensorData::new(values, [kept.len()]);
            tensors.insert(format!("{place}.kept"), data);
        }
        tensors
    }

    fn restore(
        &mut self,
        tensors: &mut BTreeMap<String, TensorData>,
        states: &States,
    ) -> Result<(), String> {
        for (place, state) in states.of::<AdaLora>() {
            if let Some(kept) = tensors.remove(&format!("{place}.kept")) {
                let kept: Vec<bool> = kept.iter::<f32>().map(|kept| kept != 0.0).collect();
                let (found, expected) = (kept.len(), state.rank());
                if found != expected {
                    return Err(format!(
                        "tensor `{place}.kept` has {found} elements, the model needs {expected}"
                    ));
                }
                self.kept.insert(place.to_string(), kept);
            }
            let keys = PARAMETERS.map(|parameter| format!("{place}.{parameter}"));
            // A layer without gradients has no importance, and none has before the first step.
            if !tensors.contains_key(&format!("{}.mean", keys[0])) {
                continue;
            }
            let values = [&state.lora_a, &state.lora_e, &state.lora_b].map(|p| p.val().inner());
            let importance = [
                Importance::stored(&keys[0], tensors, &values[0])?,
                Importance::stored(&keys[1], tensors, &values[1])?,
                Importance::stored(&keys[2], tensors, &values[2])?,
            ];
            self.importance.insert(place.to_string(), importance);
        }
        Ok(())
    }
}

/// Makes states ready to be saved as upstream does: once the schedule has decided, without the singular
/// values that it took and their vectors, and with `rank_pattern` to say which.
pub(crate) fn prune(config: &AdaLoraConfig, states: &mut States) -> Result<Map<String, Value>> {
    let decided = states
        .of::<AdaLora>()
        .any(|(_, state)| state.kept.is_some());
    // An alpha that stands for the rank would become another one.
    if !decided || config.lora_alpha <= 0.0 {
        return Ok(Map::new());
    }
    let mut masks = config.masks()?;
    states.edit::<AdaLora>(|place, state| {
        let Some(needed) = state.needed() else { return };
        state.shrink(&needed);
        let whole = match masks.remove(place) {
            // The adapter was smaller from the start: what is left of what was left.
            Some(earlier) => {
                let mut needed = needed.into_iter();
                let left = |kept| kept && needed.next().unwrap_or(false);
                earlier.into_iter().map(left).collect()
            }
            None => needed,
        };
        masks.insert(place.to_string(), whole);
    });
    let pattern: Map<String, Value> = masks
        .into_iter()
        .map(|(place, mask)| (format!("{place}.lora_E"), mask.into()))
        .collect();
    let field = ("rank_pattern".to_string(), pattern.into());
    Ok(Map::from_iter([field]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_falls_as_upstreams() {
        let schedule = AdaLoraSchedule {
            tinit: 1,
            last: 5,
            delta_t: 2,
            betas: [0.85; 2],
            orth_reg_weight: 0.5,
            initial: 8,
            target: 4,
            gradients: BTreeMap::new(),
            importance: BTreeMap::new(),
            kept: BTreeMap::new(),
        };
        let budgets: Vec<usize> = (1..=7).map(|step| schedule.budget(step)).collect();
        assert_eq!(budgets, [8, 5, 4, 4, 4, 4, 4]);
    }
}

//! AdaLoRA's schedule: which singular values are worth their place.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Gradients, Tensor};
use peft_core::{Error, PeftModule, Result};
use serde_json::{Map, Value};

use crate::adalora::{ADALORA, AdaLoraConfig};
use crate::adalora_state::AdaLora;

/// How much the loss depends on the elements of one parameter: Zhang et al. 2023, section 3.2.
#[derive(Clone, Debug)]
struct Importance {
    /// Smoothed sensitivity.
    mean: Tensor<2>,
    /// Smoothed distance of the sensitivity from that: its uncertainty.
    deviation: Tensor<2>,
}

impl Importance {
    /// Of nothing seen yet.
    fn none(like: &Tensor<2>) -> Self {
        Self {
            mean: like.zeros_like(),
            deviation: like.zeros_like(),
        }
    }

    fn after(self, sensitivity: Tensor<2>, [beta1, beta2]: [f64; 2]) -> Self {
        let mean = self.mean * beta1 + sensitivity.clone() * (1.0 - beta1);
        let distance = (sensitivity - mean.clone()).abs();
        Self {
            deviation: self.deviation * beta2 + distance * (1.0 - beta2),
            mean,
        }
    }

    fn score(&self) -> Tensor<2> {
        self.mean.clone() * self.deviation.clone()
    }
}

/// AdaLoRA's schedule of ranks (Zhang et al. 2023, sections 3.2 and 3.3; upstream's `RankAllocator`),
/// driven by the training loop.
///
/// It watches how much the loss depends on every singular value, and sets those of least importance over
/// all layers to zero, more and more of them until `target_r` is left on the average.
///
/// ```ignore
/// let mut schedule = AdaLoraSchedule::new(&model, "mine", steps)?;
/// for step in 1..=steps {
///     let loss = loss_of(&model) + schedule.orthogonality(&model)?;
///     model = schedule.step(model, loss.backward(), step, |model, gradients| {
///         let gradients = GradientsParams::from_grads(gradients, &model);
///         optimizer.step(rate, model, gradients)
///     })?;
/// }
/// schedule.save_adapter(&model, dir)?;
/// ```
#[derive(Clone, Debug)]
pub struct AdaLoraSchedule {
    name: String,
    config: AdaLoraConfig,
    total_steps: usize,
    /// Singular values over all layers, at the start and at the end.
    initial: usize,
    target: usize,
    /// Of A, E and B, by layer, from the last backward pass.
    gradients: BTreeMap<String, [Tensor<2>; 3]>,
    /// Of A, E and B, by layer.
    importance: BTreeMap<String, [Importance; 3]>,
    kept: BTreeMap<String, Vec<bool>>,
}

/// The adapter's states, by layer.
fn states<M: PeftModule>(model: &M, name: &str) -> Result<Vec<(String, AdaLora)>> {
    let states = model.adapter_states::<AdaLora>(name)?;
    if states.is_empty() {
        return Err(Error::UnknownAdapter {
            name: name.to_string(),
            attached: "none of AdaLoRA".to_string(),
        });
    }
    Ok(states)
}

/// The Frobenius norm of what a square matrix has besides the identity.
fn beside_identity(product: Tensor<2>) -> Tensor<1> {
    let identity = Tensor::<2>::eye(product.dims()[0], &product.device()).cast(product.dtype());
    // The root has no derivative at 0.
    ((product - identity).square().sum() + 1e-24).sqrt()
}

impl AdaLoraSchedule {
    /// The schedule of the adapter `name`, as its configuration says, for a training of `total_steps`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`]; [`Error::Config`] if there are not more steps than `tinit` and `tfinal`
    /// together, or if `target_r` is above `init_r`.
    pub fn new<M: PeftModule>(model: &M, name: &str, total_steps: usize) -> Result<Self> {
        let states = states(model, name)?;
        let config: AdaLoraConfig = serde_json::from_value(model.adapter_config(name)?)
            .expect("a configuration is read as it was written");
        let refuse = |field, value: usize, expected: &str| {
            Err(Error::config(ADALORA.title, field, value, expected))
        };
        if config.tinit.saturating_add(config.tfinal) >= total_steps {
            return refuse("total_step", total_steps, "more than tinit + tfinal");
        }
        if config.target_r > config.init_r {
            return refuse("target_r", config.target_r, "at most init_r");
        }
        Ok(Self {
            name: name.to_string(),
            total_steps,
            initial: states.iter().map(|(_, state)| state.rank()).sum(),
            target: config.target_r * states.len(),
            gradients: BTreeMap::new(),
            importance: BTreeMap::new(),
            kept: BTreeMap::new(),
            config,
        })
    }

    /// What is to be added to the loss: `orth_reg_weight` times the mean, over all A and B, of
    /// ‖AᵀA − I‖ and ‖B Bᵀ − I‖ (Frobenius norms; section 3.1).
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`].
    pub fn orthogonality<M: PeftModule>(&self, model: &M) -> Result<Tensor<1>> {
        let states = states(model, &self.name)?;
        let first = states[0].1.lora_a.val();
        let mut sum = Tensor::<1>::zeros([1], (&first.device(), first.dtype()));
        for (_, state) in states.iter().filter(|(_, state)| state.rank() > 0) {
            let (a, b) = (state.lora_a.val(), state.lora_b.val());
            sum = sum
                + beside_identity(a.clone().transpose().matmul(a))
                + beside_identity(b.clone().matmul(b.transpose()));
        }
        Ok(sum * (self.config.orth_reg_weight / (2 * states.len()) as f64))
    }

    /// One step of the training: `update` is the optimizer's, with what it needs of the gradients; before
    /// and after it the schedule does its part. `step` counts from 1, so that the last is the total.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Merged`].
    pub fn step<M: PeftModule>(
        &mut self,
        model: M,
        gradients: Gradients,
        step: usize,
        update: impl FnOnce(M, Gradients) -> M,
    ) -> Result<M> {
        self.observe(&model, &gradients)?;
        let model = update(model, gradients);
        self.allocate(model, step)
    }

    /// The first half of [`step`](Self::step): remembers the gradients of A, E and B. To be called after
    /// the backward pass, while the gradients are there.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`].
    pub fn observe<M: PeftModule>(&mut self, model: &M, gradients: &Gradients) -> Result<()> {
        self.gradients.clear();
        for (place, state) in states(model, &self.name)? {
            let found = [&state.lora_a, &state.lora_e, &state.lora_b]
                .map(|value| value.val().grad(gradients));
            if let [Some(a), Some(e), Some(b)] = found {
                self.gradients.insert(place, [a, e, b]);
            }
        }
        Ok(())
    }

    /// The second half of [`step`](Self::step): smooths the importances and masks what is over the budget.
    /// To be called after the optimizer's step. As upstream, it multiplies the gradients with the updated
    /// values.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Merged`].
    pub fn allocate<M: PeftModule>(&mut self, model: M, step: usize) -> Result<M> {
        let last = self.total_steps - self.config.tfinal;
        let due = match step.cmp(&last) {
            Ordering::Less => {
                self.smooth(&model)?;
                step > self.config.tinit && step.is_multiple_of(self.config.delta_t)
            }
            Ordering::Equal => true,
            Ordering::Greater => false,
        };
        if due && !self.importance.is_empty() {
            self.kept = self.choose(&model, self.budget(step))?;
        }
        if step >= last {
            self.importance.clear();
            self.gradients.clear();
        }
        if self.kept.is_empty() || !(due || step > last) {
            return Ok(model);
        }
        model.edit_adapter::<AdaLora>(&self.name, |place, state| {
            if let Some(kept) = self.kept.get(place) {
                state.mask(kept);
            }
        })
    }

    /// How many singular values may be left after a step, over all layers: all until `tinit`, then fewer by
    /// a cubic law, `target_r` a layer when `tfinal` steps are left.
    pub fn budget(&self, step: usize) -> usize {
        let (tinit, last) = (self.config.tinit, self.total_steps - self.config.tfinal);
        if step <= tinit {
            return self.initial;
        }
        if step > last {
            return self.target;
        }
        let left = 1.0 - (step - tinit) as f64 / (last - tinit) as f64;
        let (initial, target) = (self.initial as f64, self.target as f64);
        ((initial - target) * left.powf(3.0) + target) as usize
    }

    /// Which singular values are left, by layer; empty before the first allocation.
    pub fn kept(&self) -> &BTreeMap<String, Vec<bool>> {
        &self.kept
    }

    /// Writes the adapter as upstream does after such a training: without the singular values that are
    /// masked and their vectors, and with `rank_pattern` in the configuration to say which. A layer that
    /// lost all of them keeps one, which is zero.
    ///
    /// [`PeftModule::save_adapter`] writes the same adapter in its initial size; use that for a pause in
    /// the training.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Merged`], [`Error::Io`].
    pub fn save_adapter<M: PeftModule>(&self, model: &M, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        // An alpha that stands for the rank would become another one.
        if self.kept.is_empty() || self.config.lora_alpha <= 0.0 {
            return model.save_adapter(&self.name, dir);
        }
        let mut kept = self.kept.clone();
        for mask in kept.values_mut().filter(|mask| !mask.contains(&true)) {
            mask[0] = true;
        }
        let small = model.edit_adapter::<AdaLora>(&self.name, |place, state| {
            if let Some(mask) = kept.get(place) {
                state.shrink(mask);
            }
        })?;
        let mut masks = self.config.masks()?;
        for (place, mask) in kept {
            let whole = match masks.remove(&place) {
                // The adapter was smaller from the start: what is left of what was left.
                Some(earlier) => {
                    let mut mask = mask.into_iter();
                    let left = |kept| kept && mask.next().unwrap_or(false);
                    earlier.into_iter().map(left).collect()
                }
                None => mask,
            };
            masks.insert(place, whole);
        }
        let pattern: Map<String, Value> = masks
            .into_iter()
            .map(|(place, mask)| (format!("{place}.lora_E"), mask.into()))
            .collect();
        let fields = Map::from_iter([("rank_pattern".to_string(), pattern.into())]);
        small.save_adapter_with(&self.name, dir, fields)
    }

    /// Takes the gradients that were seen last into the importances.
    fn smooth<M: PeftModule>(&mut self, model: &M) -> Result<()> {
        let betas = [self.config.beta1, self.config.beta2];
        for (place, state) in states(model, &self.name)? {
            let Some([a, e, b]) = self.gradients.remove(&place) else {
                continue;
            };
            let sensitivities = [(&state.lora_a, a), (&state.lora_e, e), (&state.lora_b, b)]
                .map(|(value, gradient)| (value.val().inner() * gradient).abs());
            let before = self
                .importance
                .remove(&place)
                .unwrap_or_else(|| sensitivities.each_ref().map(Importance::none));
            let mut sensitivities = sensitivities.into_iter();
            let after = before.map(|importance| match sensitivities.next() {
                Some(sensitivity) => importance.after(sensitivity, betas),
                None => importance,
            });
            self.importance.insert(place, after);
        }
        Ok(())
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
    fn choose<M: PeftModule>(
        &self,
        model: &M,
        budget: usize,
    ) -> Result<BTreeMap<String, Vec<bool>>> {
        let scores: Vec<(String, Vec<f32>)> = states(model, &self.name)?
            .into_iter()
            .filter(|(_, state)| state.rank() > 0)
            .map(|(place, state)| {
                let scores = self.scores(&place, state.rank());
                (place, scores)
            })
            .collect();
        let all = scores.iter().flat_map(|(_, scores)| scores);
        let mut all: Vec<f32> = all.copied().collect();
        all.sort_by(f32::total_cmp);
        let over = all.len().saturating_sub(budget);
        let threshold = over.checked_sub(1).map(|place| all[place]);
        // Those that equal the threshold go with it.
        let stays = |score: f32| threshold.is_none_or(|threshold| score > threshold);
        Ok(scores
            .into_iter()
            .map(|(place, scores)| (place, scores.into_iter().map(stays).collect()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::TensorData;

    use super::*;

    #[derive(Module, Debug)]
    struct Net {
        one: Linear,
        two: Linear,
    }

    /// sin(0.7 i + phase), on the device of `like` and of its shape.
    fn wave(like: &Tensor<2>, phase: usize) -> Tensor<2> {
        let shape = like.dims();
        let values: Vec<f32> = (0..shape[0] * shape[1])
            .map(|at| (at as f32 * 0.7 + phase as f32).sin())
            .collect();
        Tensor::from_data(TensorData::new(values, shape), &like.device())
    }

    /// Upstream's values are those of the transposed A and B.
    fn start() -> Net {
        let (_, device) = peft_core::device::cpu_devices().remove(0);
        let device = device.autodiff();
        let net = Net {
            one: LinearConfig::new(4, 6).init(&device),
            two: LinearConfig::new(5, 4).init(&device),
        };
        let config = AdaLoraConfig::new(4, 2).with_phases(1, 2, 2);
        let model = net.attach("x", &config).unwrap();
        model
            .edit_adapter::<AdaLora>("x", |place, state| {
                let at = usize::from(place == "two");
                let set = |param: &Param<Tensor<2>>, phase| {
                    param
                        .clone()
                        .map(|old| wave(&old, phase).detach().require_grad())
                };
                state.lora_a = set(&state.lora_a, at + 1);
                state.lora_e = set(&state.lora_e, at + 2);
                state.lora_b = set(&state.lora_b, at + 3);
            })
            .unwrap()
    }

    /// A loss whose gradients are waves.
    fn gradients(model: &Net, step: usize) -> Gradients {
        let mut loss = Tensor::<1>::zeros([1], &model.one.weight.device());
        for (place, state) in model.adapter_states::<AdaLora>("x").unwrap() {
            let at = usize::from(place == "two");
            for (param, phase) in [(&state.lora_a, 4), (&state.lora_e, 5), (&state.lora_b, 6)] {
                let value = param.val();
                let factor = wave(&value, at + phase + step);
                loss = loss + (value * factor).sum();
            }
        }
        loss.backward()
    }

    #[test]
    fn ranks_are_allocated_as_upstream_does() {
        let mut model = start();
        let mut schedule = AdaLoraSchedule::new(&model, "x", 7).unwrap();
        let budgets: Vec<usize> = (1..=7).map(|step| schedule.budget(step)).collect();
        assert_eq!(budgets, [8, 5, 4, 4, 4, 4, 4]);
        let penalty = schedule.orthogonality(&model).unwrap().into_scalar::<f32>();
        assert!((penalty - 3.477_73).abs() < 1e-4, "{penalty}");
        for step in 1..=7 {
            let gradients = gradients(&model, step);
            model = schedule
                .step(model, gradients, step, |model, _| model)
                .unwrap();
            let kept: Vec<Vec<bool>> = schedule.kept().values().cloned().collect();
            let expected: &[[bool; 4]] = match step {
                1 => &[],
                2 | 3 => &[[true, true, false, true], [false, true, false, true]],
                _ => &[[false, true, false, true], [false, true, false, true]],
            };
            assert_eq!(kept, expected, "step {step}");
        }
        for (place, state) in model.adapter_states::<AdaLora>("x").unwrap() {
            let values = state.lora_e.val();
            assert!(values.is_require_grad());
            let left: Vec<bool> = values.into_data().iter().map(|e: f32| e != 0.0).collect();
            assert_eq!(left, schedule.kept()[&place]);
        }
    }

    #[test]
    fn what_is_saved_is_smaller_and_the_same() {
        let mut model = start();
        let mut schedule = AdaLoraSchedule::new(&model, "x", 7).unwrap();
        for step in 1..=7 {
            let gradients = gradients(&model, step);
            model = schedule
                .step(model, gradients, step, |model, _| model)
                .unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        schedule.save_adapter(&model, dir.path()).unwrap();
        let base = model.unload().unwrap();
        let loaded = base.load_adapter("y", dir.path(), &[&ADALORA]).unwrap();
        let ranks: Vec<usize> = loaded
            .adapter_states::<AdaLora>("y")
            .unwrap()
            .iter()
            .map(|(_, state)| state.rank())
            .collect();
        assert_eq!(ranks, [2, 2]);
        let difference = model.one.weight.val() - loaded.one.weight.val();
        let distance = difference.abs().max().into_scalar::<f32>();
        assert!(distance < 1e-5, "{distance}");
    }

    #[test]
    fn a_schedule_needs_steps_and_an_adapter() {
        let model = start();
        assert!(AdaLoraSchedule::new(&model, "x", 3).is_err());
        assert!(AdaLoraSchedule::new(&model, "y", 7).is_err());
    }
}

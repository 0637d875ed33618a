//! AdamW whose state is kept by the parameters' paths.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::{AdamWState, AdaptiveMomentumState, DynState, GradientsParams};
use burn::tensor::{DType, Tensor, TensorData};
use peft_core::ops::{AdamWOptions, adamw};

use crate::TrainConfig;
use crate::tensors::Tensors;
use crate::trained::Place;

/// AdamW (Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2).
///
/// The arithmetic is that of Burn's own [`AdamW`](burn::optim::AdamW), to the last bit, in one pass over memory
/// ([`adamw`]). Burn keeps the moments by parameter ids,
/// which are drawn anew in every process; here they are kept by the parameters' paths in the model, so
/// that a run goes on in another process. Only parameters that had a gradient have moments.
///
/// Weight decay acts on tensors of two dimensions and more: biases, norms and other vectors have none.
#[derive(Clone)]
pub struct AdamW {
    beta_1: f32,
    beta_2: f32,
    epsilon: f32,
    weight_decay: f64,
    states: BTreeMap<String, DynState>,
    rates: Vec<(ParamGroup, f64)>,
}

impl AdamW {
    /// With the betas, epsilon and weight decay of a configuration.
    pub fn new(config: &TrainConfig) -> Self {
        Self {
            beta_1: config.beta_1 as f32,
            beta_2: config.beta_2 as f32,
            epsilon: config.epsilon as f32,
            // Burn's has 32 bits.
            weight_decay: f64::from(config.weight_decay as f32),
            states: BTreeMap::new(),
            rates: Vec::new(),
        }
    }

    /// Gives the parameters of `group` the learning rate times `factor`, as LoRA+ does for B. Where
    /// groups overlap, the one given last holds.
    #[must_use]
    pub fn with_rate(mut self, group: ParamGroup, factor: f64) -> Self {
        self.rates.push((group, factor));
        self
    }

    /// Makes room for the moments of all that is trained, inactive adapters not among it. Optional; before the first step it keeps them together in
    /// memory, where they would lie between what the first step has freed and come in the way of the next ones: a
    /// fortieth of a small model's.
    pub fn prepare<M: Module>(&mut self, model: &M) {
        model.visit(&mut Prepare {
            states: &mut self.states,
            place: Place::default(),
        });
    }

    /// One step at the learning rate `rate`; parameters without a gradient stay as they are.
    #[must_use]
    pub fn step<M: Module>(&mut self, rate: f64, model: M, gradients: GradientsParams) -> M {
        model.map(&mut Step {
            optimizer: self,
            rate,
            gradients,
            path: Vec::new(),
        })
    }

    /// Keeps only the moments of the parameters at `paths`; whether there were others.
    pub(crate) fn retain(&mut self, paths: &BTreeSet<String>) -> bool {
        let before = self.states.len();
        self.states.retain(|path, _| paths.contains(path));
        self.states.len() < before
    }

    /// The factors of the parameters that are trained and in a group, by path.
    pub(crate) fn factors<M: Module>(&self, model: &M) -> BTreeMap<String, f64> {
        let mut factors = Factors {
            rates: &self.rates,
            path: Vec::new(),
            found: BTreeMap::new(),
        };
        model.visit(&mut factors);
        factors.found
    }

    /// The state, by `<path of the parameter>.<moment_1, moment_2 or time>`; `time` is the number of its
    /// steps.
    pub(crate) fn state<M: Module>(&self, model: &M) -> Tensors {
        let mut save = Save {
            states: &self.states,
            path: Vec::new(),
            tensors: Tensors::new(),
        };
        model.visit(&mut save);
        save.tensors
    }

    /// Puts in what [`state`](Self::state) gave.
    ///
    /// # Errors
    ///
    /// What does not fit the model.
    pub(crate) fn restore<M: Module>(&mut self, model: &M, tensors: Tensors) -> Result<(), String> {
        let mut load = Load {
            path: Vec::new(),
            tensors,
            states: BTreeMap::new(),
            problem: None,
        };
        model.visit(&mut load);
        if let Some(problem) = load.problem {
            return Err(problem);
        }
        if let Some(name) = load.tensors.keys().next() {
            return Err(format!(
                "it holds `{name}`, and the model has no such parameter"
            ));
        }
        self.states = load.states;
        Ok(())
    }
}

/// The factor of a parameter in a group: of the last group that it is in.
fn factor(rates: &[(ParamGroup, f64)], id: ParamId, path: &str) -> Option<f64> {
    let mut groups = rates.iter().rev();
    let group = groups.find(|(group, _)| group.matches(&id, Some(path)));
    group.map(|(_, factor)| *factor)
}

struct Factors<'a> {
    rates: &'a [(ParamGroup, f64)],
    path: Vec<String>,
    found: BTreeMap<String, f64>,
}

impl ModuleVisitor for Factors<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad() {
            return;
        }
        let path = self.path.join(".");
        if let Some(factor) = factor(self.rates, param.id, &path) {
            self.found.insert(path, factor);
        }
    }
}

/// Moments before the first step. In 16 bits a second moment would never change: what a step adds is less than its
/// last bit.
fn no_moments<const D: usize>(value: &Tensor<D>) -> [Tensor<D>; 2] {
    let dtype = match value.dtype() {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    };
    [(); 2].map(|()| Tensor::zeros(value.dims(), (&value.device(), dtype)))
}

struct Prepare<'a> {
    states: &'a mut BTreeMap<String, DynState>,
    place: Place,
}

impl ModuleVisitor for Prepare<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.place.exit(container);
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.place.path();
        if !self.place.trains(param) || self.states.contains_key(&path) {
            return;
        }
        let like = param.base().without_autodiff();
        let [first, second] = no_moments(&like);
        let state = AdaptiveMomentumState::new(0, first, second);
        self.states
            .insert(path, DynState::create(AdamWState::new(state), D));
    }
}

struct Step<'a> {
    optimizer: &'a mut AdamW,
    rate: f64,
    gradients: GradientsParams,
    path: Vec<String>,
}

impl ModuleMapper for Step<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.remove::<D>(param.id) else {
            return param;
        };
        let path = self.path.join(".");
        let optimizer = &mut *self.optimizer;
        let mut options = AdamWOptions {
            beta_1: optimizer.beta_1,
            beta_2: optimizer.beta_2,
            epsilon: optimizer.epsilon,
            weight_decay: if D < 2 { 0.0 } else { optimizer.weight_decay },
            rate: self.rate * factor(&optimizer.rates, param.id, &path).unwrap_or(1.0),
            time: 1,
        };
        let states = &mut optimizer.states;
        let state = states
            .remove(&path)
            .map(|state| state.downcast::<AdamWState<D>>().momentum);
        param.map(|value| {
            let strategy = value.gradient_checkpointing_strategy();
            let value = value.without_autodiff();
            let moments = match state {
                Some(state) => {
                    options.time = state.time as i32 + 1;
                    [state.moment_1, state.moment_2]
                }
                None => no_moments(&value),
            };
            let [value, first, second] =
                adamw(value, gradient.without_autodiff(), moments, options);
            let state = AdaptiveMomentumState::new(options.time as usize, first, second);
            states.insert(path, DynState::create(AdamWState::new(state), D));
            // Back to the autodiff side as it was there; what had a gradient wants one again.
            let mut value = Tensor::from_inner(value);
            if let Some(strategy) = strategy {
                value = value.with_gradient_checkpointing_strategy(strategy);
            }
            value.require_grad()
        })
    }
}

struct Save<'a> {
    states: &'a BTreeMap<String, DynState>,
    path: Vec<String>,
    tensors: Tensors,
}

impl ModuleVisitor for Save<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        let Some(state) = self.states.get(&path) else {
            return;
        };
        let momentum = &state.downcast_ref::<AdamWState<D>>().momentum;
        if momentum.time == 0 {
            return;
        }
        let time = TensorData::new(vec![momentum.time as f64], [1]);
        let parts = [
            ("moment_1", momentum.moment_1.clone().into_data()),
            ("moment_2", momentum.moment_2.clone().into_data()),
            ("time", time),
        ];
        for (part, data) in parts {
            self.tensors.insert(format!("{path}.{part}"), data);
        }
    }
}

struct Load {
    path: Vec<String>,
    tensors: Tensors,
    states: BTreeMap<String, DynState>,
    problem: Option<String>,
}

impl ModuleVisitor for Load {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        let mut part = |name: &str| self.tensors.remove(&format!("{path}.{name}"));
        let (first, second, time) = match (part("moment_1"), part("moment_2"), part("time")) {
            (Some(first), Some(second), Some(time)) => (first, second, time),
            (None, None, None) => return,
            _ => {
                let problem = format!("it holds a part of the state of `{path}` only");
                self.problem.get_or_insert(problem);
                return;
            }
        };
        let expected = param.lazy_shape().to_vec();
        for data in [&first, &second] {
            if data.shape().to_vec() != expected {
                let found = data.shape().to_vec();
                self.problem.get_or_insert(format!(
                    "the moments of `{path}` are {found:?}, but the parameter is {expected:?}"
                ));
                return;
            }
        }
        let device = param.device().without_autodiff();
        let tensor = |data: TensorData| {
            let dtype = data.dtype();
            Tensor::<D>::from_data(data, (&device, dtype))
        };
        let steps = time.iter::<f64>().next().unwrap_or(1.0) as usize;
        let momentum = AdaptiveMomentumState::new(steps, tensor(first), tensor(second));
        let state = DynState::create(AdamWState::new(momentum), D);
        self.states.insert(path, state);
    }
}

#[cfg(test)]
mod tests;

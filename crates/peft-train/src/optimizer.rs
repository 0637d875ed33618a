//! AdamW whose state is kept by the parameters' paths.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::{AdamWState, AdaptiveMomentumState, DynState, GradientsParams};
use burn::tensor::{DType, Tensor, TensorData};
use peft_core::ops::{AdamWOptions, adamw};

use crate::TrainConfig;
use crate::tensors::Tensors;

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

    /// Makes room for the moments of all that is trained. Optional; before the first step it keeps them together in
    /// memory, where they would lie between what the first step has freed and come in the way of the next ones: a
    /// fortieth of a small model's.
    pub fn prepare<M: Module>(&mut self, model: &M) {
        model.visit(&mut Prepare {
            states: &mut self.states,
            path: Vec::new(),
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
    path: Vec<String>,
}

impl ModuleVisitor for Prepare<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        if !param.is_require_grad() || self.states.contains_key(&path) {
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
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::optim::AdamWConfig;
    use burn::tensor::Device;

    use super::*;

    fn config() -> TrainConfig {
        TrainConfig::new()
            .with_weight_decay(0.1)
            .with_adam(0.8, 0.95, 1e-6)
    }

    fn gradients(model: &Linear, device: &Device, step: usize) -> GradientsParams {
        let input = Tensor::<2>::full([3, 4], 0.3 + step as f32, device);
        let loss = model.forward(input).square().sum();
        GradientsParams::from_grads(loss.backward(), model)
    }

    fn values(model: &Linear) -> Vec<TensorData> {
        let bias = model.bias.iter().map(|bias| bias.val().into_data());
        [model.weight.val().into_data()]
            .into_iter()
            .chain(bias)
            .collect()
    }

    #[test]
    fn steps_are_those_of_burn_and_go_on_in_another_process() {
        for (name, device) in peft_core::device::cpu_devices() {
            let device = device.autodiff();
            for (decay, bias) in [(0.1, false), (0.0, true)] {
                let config = config().with_weight_decay(decay);
                let linear = LinearConfig::new(4, 4).with_bias(bias);
                let mut burns = linear.init(&device);
                let mut ours = burns.clone();
                let mut reference = AdamWConfig::new()
                    .with_weight_decay(decay as f32)
                    .with_beta_1(0.8)
                    .with_beta_2(0.95)
                    .with_epsilon(1e-6)
                    .init();
                let mut optimizer = AdamW::new(&config);
                optimizer.prepare(&ours);
                assert!(optimizer.state(&ours).is_empty(), "{name}");
                for step in 0..6 {
                    let gradient = gradients(&burns, &device, step);
                    burns = reference.step(0.01, burns, gradient);
                    let gradient = gradients(&ours, &device, step);
                    ours = optimizer.step(0.01, ours, gradient);
                    assert_eq!(values(&ours), values(&burns), "{name}, step {step}");
                    if step == 2 {
                        let state = optimizer.state(&ours);
                        assert_eq!(state.len(), 3 * values(&ours).len(), "{name}");
                        optimizer = AdamW::new(&config);
                        optimizer.restore(&ours, state).unwrap();
                    }
                }
            }
        }
    }

    /// Where a tensor's numbers are, and the tensor back, in the same memory if nothing else holds that.
    fn place<const D: usize>(tensor: Tensor<D>) -> (usize, Tensor<D>) {
        let device = tensor.device();
        let data = tensor.into_data();
        let place = data.as_bytes().as_ptr() as usize;
        (place, Tensor::from_data(data, &device))
    }

    #[test]
    fn memory_stays_where_it_is() {
        let device = peft_core::device::device("flex").unwrap().autodiff();
        let mut model = LinearConfig::new(64, 300).with_bias(false).init(&device);
        let mut optimizer = AdamW::new(&config());
        optimizer.prepare(&model);
        let mut places = Vec::new();
        for step in 0..3 {
            let input = Tensor::<2>::full([3, 64], 0.3 + step as f32, &device);
            let loss = model.forward(input).square().sum();
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(0.01, model, gradients);

            let mut held = Vec::new();
            let state = optimizer.states.remove("weight").unwrap();
            let momentum = state.downcast::<AdamWState<2>>().momentum;
            let moments = [momentum.moment_1, momentum.moment_2].map(|moment| {
                let (at, moment) = place(moment);
                held.push(at);
                moment
            });
            let [first, second] = moments;
            let momentum = AdaptiveMomentumState::new(momentum.time, first, second);
            let state = DynState::create(AdamWState::new(momentum), 2);
            optimizer.states.insert("weight".into(), state);
            model.weight = model.weight.map(|weight| {
                let (at, weight) = place(weight.without_autodiff());
                held.push(at);
                Tensor::from_inner(weight).require_grad()
            });
            places.push(held);
        }
        assert!(places.iter().all(|held| *held == places[0]), "{places:?}");
    }

    #[test]
    fn moments_of_16_bits_have_32() {
        let device = peft_core::device::device("flex").unwrap();
        let tensor = |values: &[f32], dtype| {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::<1>::from_data(data, (&device, dtype))
        };
        let options = |time| AdamWOptions {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            rate: 1e-2,
            time,
        };
        let values = [0.5, -0.25, 1.0];
        let (mut whole, mut half) = (tensor(&values, DType::F32), tensor(&values, DType::BF16));
        let (mut moments, mut of_half) = (no_moments(&whole), no_moments(&half));
        for time in 1..20 {
            let gradient = tensor(&[0.3, -0.7, time as f32 / 20.0], DType::F32);
            let [value, first, second] = adamw(whole, gradient.clone(), moments, options(time));
            (whole, moments) = (value, [first, second]);
            let [value, first, second] =
                adamw(half, gradient.cast(DType::BF16), of_half, options(time));
            assert_eq!((value.dtype(), second.dtype()), (DType::BF16, DType::F32));
            (half, of_half) = (value, [first, second]);
        }
        let [exact, rounded] = [whole, half.cast(DType::F32)]
            .map(|tensor| tensor.into_data().try_to_vec::<f32>().unwrap());
        for (exact, rounded) in exact.iter().zip(&rounded) {
            assert!((exact - rounded).abs() < 0.02, "{rounded} for {exact}");
        }
    }

    #[test]
    fn vectors_do_not_decay() {
        let (_, device) = peft_core::device::cpu_devices().remove(0);
        let device = device.autodiff();
        let model = LinearConfig::new(4, 4).init(&device);
        let [decayed, plain] = [0.1, 0.0].map(|decay| {
            let mut optimizer = AdamW::new(&config().with_weight_decay(decay));
            let gradient = gradients(&model, &device, 0);
            values(&optimizer.step(0.01, model.clone(), gradient))
        });
        assert_ne!(decayed[0], plain[0], "the weight");
        assert_eq!(decayed[1], plain[1], "the bias");
    }

    #[test]
    fn a_group_has_a_rate_of_its_own() {
        let (_, device) = peft_core::device::cpu_devices().remove(0);
        let device = device.autodiff();
        let model = LinearConfig::new(4, 4).init(&device);
        let before = values(&model);
        let group = ParamGroup::from_ids(vec![model.weight.id]);
        let mut optimizer = AdamW::new(&config()).with_rate(group, 0.0);
        let gradient = gradients(&model, &device, 0);
        let model = optimizer.step(0.01, model, gradient);
        assert_eq!(values(&model)[0], before[0], "the weight");
        assert_ne!(values(&model)[1], before[1], "the bias");
    }

    #[test]
    fn a_state_of_another_model_is_refused() {
        let (_, device) = peft_core::device::cpu_devices().remove(0);
        let device = device.autodiff();
        let model = LinearConfig::new(4, 4).init(&device);
        let mut optimizer = AdamW::new(&config());
        let gradient = gradients(&model, &device, 0);
        let model = optimizer.step(0.01, model, gradient);
        let state = optimizer.state(&model);
        let wider = LinearConfig::new(4, 5).init(&device);
        let error = optimizer.restore(&wider, state.clone()).unwrap_err();
        assert!(error.contains("moments of"), "{error}");
        let bare = LinearConfig::new(4, 4).with_bias(false).init(&device);
        let error = optimizer.restore(&bare, state).unwrap_err();
        assert!(error.contains("bias."), "{error}");
    }
}

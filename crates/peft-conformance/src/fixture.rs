//! The model, data and measurements that conformance tests use.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Bool, Device, Distribution, Int, Tensor, TensorData};
use peft_core::calibration::Calibrate as _;
use peft_core::method::{LayoutParam, Method};
use peft_core::nn::ACTIVE_ADAPTER;
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule, TrainingHooks};

use crate::TinyTransformer;

/// A model with data, on one device.
#[derive(Debug)]
pub struct Fixture {
    /// The device, without autodiff.
    pub device: Device,
    /// The model, on the device's autodiff side. Adapters of the case's that are not tested are on it.
    pub base: TinyTransformer,
    /// Those, by name.
    beside: Beside,
}

/// Adapters that are on the model before the tested one.
type Beside = Vec<(&'static str, Box<dyn Method>)>;

const ROWS: usize = 6;
const TOKENS: usize = 9;

impl Fixture {
    /// The same model and data on any device.
    pub fn new(device: &Device) -> Self {
        Self::beside(device, &[])
    }

    /// The same with other adapters on the model, frozen and inactive.
    ///
    /// # Panics
    ///
    /// If one of them cannot be attached.
    pub fn beside(device: &Device, beside: &[(&'static str, Box<dyn Method>)]) -> Self {
        let bare = TinyTransformer::new(&device.clone().autodiff());
        let base = beside.iter().fold(bare, |model, (name, method)| {
            frozen(&model, name, method.as_ref())
                .unwrap_or_else(|error| panic!("the adapter `{name}` of the case: {error}"))
        });
        let beside = beside.iter();
        Self {
            device: device.clone(),
            base,
            beside: beside
                .map(|(name, method)| (*name, method.boxed()))
                .collect(),
        }
    }

    /// The same on another device.
    #[must_use]
    pub fn on(&self, device: &Device) -> Self {
        Self::beside(device, &self.beside)
    }

    /// The same adapters on another base.
    pub(crate) fn with_base(&self, base: TinyTransformer) -> Self {
        let beside = self.beside.iter();
        Self {
            device: self.device.clone(),
            base,
            beside: beside
                .map(|(name, method)| (*name, method.boxed()))
                .collect(),
        }
    }

    /// The names of adapters that are on a model, but for those that are on the base already.
    pub(crate) fn names(&self, model: &TinyTransformer) -> Vec<String> {
        let mut names = model.adapters();
        names.retain(|name| self.beside.iter().all(|(other, _)| other != name));
        names
    }

    /// How many elements the adapters on the base have.
    ///
    /// # Errors
    ///
    /// What `unload` refuses.
    pub(crate) fn elements_beside(&self) -> Result<usize, String> {
        let bare = self.base.unload().map_err(|error| error.to_string())?;
        Ok(self.base.num_params() - bare.num_params())
    }

    /// Token ids, padding and labels of one batch with rows of unequal length.
    pub fn batch(&self, device: &Device) -> (Tensor<2, Int>, Tensor<2, Bool>, Tensor<1, Int>) {
        let ids: Vec<i64> = (0..ROWS * TOKENS)
            .map(|at| (at as i64 * 31 + 7) % 96 + 1)
            .collect();
        let padding: Vec<bool> = (0..ROWS * TOKENS)
            .map(|at| at % TOKENS >= TOKENS - at / TOKENS)
            .collect();
        let labels: Vec<i64> = (0..ROWS).map(|row| (row % 2) as i64).collect();
        (
            Tensor::from_data(TensorData::new(ids, [ROWS, TOKENS]), device),
            Tensor::from_data(TensorData::new(padding, [ROWS, TOKENS]), device),
            Tensor::from_data(TensorData::new(labels, [ROWS]), device),
        )
    }

    /// The model's logits, without autodiff.
    ///
    /// # Errors
    ///
    /// If one of them is NaN or infinite: no conformance test may pass with such outputs, and two that are equal bit by
    /// bit would say nothing.
    pub fn outputs(&self, model: &TinyTransformer) -> Result<TensorData, String> {
        let (ids, padding, _) = self.batch(&self.device);
        let outputs = model.valid().forward(ids, Some(padding)).into_data();
        finite("outputs", &outputs)?;
        Ok(outputs)
    }

    /// The loss on the batch, with autodiff.
    pub fn loss(&self, model: &TinyTransformer) -> Tensor<1> {
        let (ids, padding, labels) = self.batch(&self.device.clone().autodiff());
        let logits = model.forward(ids, Some(padding));
        CrossEntropyLossConfig::new()
            .init(&logits.device())
            .forward(logits, labels)
    }

    /// `model` with the method attached under `name`. A method that asks for statistics gets those of the batch, on the
    /// bare model.
    ///
    /// # Errors
    ///
    /// What `attach` refuses.
    pub fn attach(
        &self,
        model: &TinyTransformer,
        name: &str,
        method: &dyn Method,
    ) -> peft_core::Result<TinyTransformer> {
        let Some(wanted) = method.statistics() else {
            return model.attach(name, method);
        };
        // Of dense weights on a device with autodiff, whatever the model is.
        let bare = TinyTransformer::new(&self.device.clone().autodiff());
        let mut calibrator = bare.calibrate(&wanted)?;
        let loss = self.loss(calibrator.model());
        if wanted.gradients || wanted.squared_gradients {
            calibrator.record_gradients(&loss.backward())?;
        }
        model.attach_with(name, method, &calibrator.finish()?)
    }

    /// The base with the method attached under `name`, and away from its initial values.
    ///
    /// # Errors
    ///
    /// What `attach` refuses.
    pub fn trained(&self, name: &str, method: &dyn Method) -> Result<TinyTransformer, String> {
        let model = self
            .attach(&self.base, name, method)
            .map_err(|error| error.to_string())?;
        Ok(perturb(model, name))
    }

    /// Steps of `AdamW` on the batch; returns the losses before each.
    pub fn train(
        &self,
        mut model: TinyTransformer,
        steps: usize,
        rate: f64,
    ) -> (TinyTransformer, Vec<f32>) {
        let mut optimizer = AdamWConfig::new().init();
        let mut losses = Vec::new();
        for _ in 0..steps {
            let loss = self.loss(&model);
            losses.push(loss.clone().into_scalar::<f32>());
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(rate, model, gradients);
        }
        (model, losses)
    }

    /// Steps of `AdamW` at a rate of 0.01 on the batch, in a loop that calls the hooks; `seen` gets the model after each
    /// step, and the step's number from 1.
    ///
    /// # Panics
    ///
    /// If a hook refuses.
    pub fn train_with_hooks(
        &self,
        mut model: TinyTransformer,
        hooks: &mut TrainingHooks,
        steps: usize,
        mut seen: impl FnMut(usize, &TinyTransformer),
    ) -> TinyTransformer {
        let mut optimizer = AdamWConfig::new().init();
        for step in 1..=steps {
            let mut loss = self.loss(&model);
            if let Some(penalty) = hooks.penalty(&model).expect("a penalty") {
                loss = loss + penalty;
            }
            let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
            let before = hooks.before_step(&model, &mut gradients);
            before.expect("gradients that the hooks take");
            model = optimizer.step(1e-2, model, gradients);
            model = hooks
                .after_step(model)
                .expect("a model that the hooks take");
            seen(step, &model);
        }
        model
    }
}

/// A model with an adapter whose values are the same in every call, frozen and inactive.
fn frozen(
    model: &TinyTransformer,
    name: &str,
    method: &dyn Method,
) -> peft_core::Result<TinyTransformer> {
    let model = model.attach(name, method)?;
    let mut tensors = model.adapter_tensors(name)?;
    for (at, data) in tensors.values_mut().enumerate() {
        let count = data.num_elements();
        let values = (0..count).map(|index| 0.3 * ((index * 7 + at * 13 + 1) as f32).sin());
        *data = TensorData::new(values.collect::<Vec<f32>>(), data.shape());
    }
    let model = model.with_adapter_tensors(name, tensors)?;
    model.freeze_adapter(name)?.disable_adapters()
}

/// The base values of all parameters, in order.
pub(crate) fn base_values(model: &TinyTransformer) -> Vec<(String, TensorData)> {
    let value = |param: &LayoutParam| match param.shape().len() {
        1 => param.value::<1>().into_data(),
        2 => param.value::<2>().into_data(),
        _ => param.value::<4>().into_data(),
    };
    model
        .layout()
        .params
        .iter()
        .map(|param| (param.name.clone(), value(param)))
        .collect()
}

/// Whether two models have the same base values, bit for bit.
///
/// # Errors
///
/// Names the first parameter that differs.
pub(crate) fn same_base(now: &TinyTransformer, before: &TinyTransformer) -> Result<(), String> {
    let (now, before) = (base_values(now), base_values(before));
    if now.len() != before.len() {
        return Err(format!(
            "the base has {} parameters, before it had {}",
            now.len(),
            before.len()
        ));
    }
    for ((name, now), (_, before)) in now.iter().zip(&before) {
        if now != before {
            return Err(format!("base parameter `{name}` changed"));
        }
    }
    Ok(())
}

/// Elements that a model has beside those of the base: the matrix of its own that a tied head got when an adapter was
/// merged that changes the table or the head alone. 0 where they are still one.
pub(crate) fn elements_of_untied_head(model: &TinyTransformer) -> usize {
    let own = model.lm_head.own();
    own.map_or(0, |matrix| matrix.shape().num_elements())
}

/// Whether a tied head got a matrix of its own although that is the table.
pub(crate) fn is_needlessly_untied(model: &TinyTransformer) -> bool {
    let table = model.embeddings.word_embeddings.weight.val().into_data();
    let own = model.lm_head.own();
    own.is_some_and(|own| own.into_data() == table)
}

/// The largest absolute difference of two outputs; NaN where one value is NaN or infinite, which fails every
/// bound.
///
/// # Panics
///
/// If they are of different shapes.
pub fn farthest(a: &TensorData, b: &TensorData) -> f64 {
    assert_eq!(a.shape(), b.shape(), "outputs of different shapes");
    peft_testing::farthest(a.iter::<f32>(), b.iter::<f32>())
}

/// That all values are numbers.
pub(crate) fn finite(what: &str, data: &TensorData) -> Result<(), String> {
    match data.iter::<f64>().find(|value| !value.is_finite()) {
        Some(value) => Err(format!("{what} hold {value}, which is no number")),
        None => Ok(()),
    }
}

/// Adds noise to every trained parameter of the active adapter called `name`, as training would, on a device with or
/// without autodiff.
///
/// # Panics
///
/// If there is no such parameter: a test would compare what did not change.
pub fn perturb<M: Module>(model: M, name: &str) -> M {
    let mut perturb = Perturb {
        adapter: format!("{ACTIVE_ADAPTER}:{name}"),
        path: Vec::new(),
        changed: 0,
    };
    let model = model.map(&mut perturb);
    assert!(
        perturb.changed > 0,
        "no parameter of an active adapter `{name}` is trained"
    );
    model
}

struct Perturb {
    /// How the adapter is called in a path.
    adapter: String,
    path: Vec<String>,
    changed: usize,
}

/// Whether a parameter is set to be trained, also where its device has no autodiff right now. There Burn says it only of
/// what is put to training.
fn trains<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    if param.is_autodiff() {
        return param.is_require_grad();
    }
    let value = param.clone().train().val();
    let trained = value.is_require_grad();
    if trained {
        // What is in the autodiff graph goes with a backward pass.
        let _ = value.sum().backward();
    }
    trained
}

impl ModuleMapper for Perturb {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(format!("{container}:{name}"));
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !self.path.contains(&self.adapter) || !trains(&param) {
            return param;
        }
        self.changed += 1;
        param.map(|value| {
            let trains = value.is_require_grad();
            let value = value.detach();
            let noise = value.random_like(Distribution::Normal(0.0, 0.1));
            (value + noise).detach().set_require_grad(trains)
        })
    }
}

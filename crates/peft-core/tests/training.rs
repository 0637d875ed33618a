//! A method of the user's own that does more in a training loop than being trained.

use std::collections::BTreeMap;
use std::fs;

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Tensor, TensorData};
use peft_core::method::{
    Adapter, CheckpointKey, Common, Layout, Method, MethodHooks, Plan, States, WeightAdapter,
    method_config,
};
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule as _, Result, TrainingHooks, checkpoint};
use serde_json::{Map, Value};

/// W + O.
#[derive(Module, Debug)]
struct Offset {
    value: Param<Tensor<2>>,
    /// What the schedule drew for the next step.
    #[module(skip)]
    drawn: usize,
}

impl Adapter for Offset {
    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![CheckpointKey::layer("value", "value")]
    }
}

impl WeightAdapter for Offset {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + self.value.val().reshape(shape)
    }
}

/// Adds an offset to every matrix.
#[method_config(
    OFFSET, peft_type = "OFFSET", title = "Offset", family = Reparameterization, identity_at_init, mergeable, new(),
    reference = "a method of this test"
)]
pub struct OffsetConfig {
    /// Fields that every method has.
    pub common: Common,
}

impl Method for OffsetConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        for param in layout.params.iter().filter(|p| p.shape().len() == 2) {
            let shape = [param.shape()[0], param.shape()[1]];
            let value = plan.init().zeros(shape, (&param.device(), param.dtype()));
            plan.adapt_weight(param, Offset { value, drawn: 0 });
        }
        Ok(())
    }

    fn schedule(&self, _steps: usize, _states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        Ok(Some(Box::new(EverySecond { seen: 0.0 })))
    }

    fn finalize(&self, states: &mut States) -> Result<Map<String, Value>> {
        states.edit::<Offset>(|_, state| {
            state.value = state.value.clone().map(|value| value.zeros_like());
        });
        let drawn = states.of::<Offset>().map(|(_, state)| state.drawn);
        let drawn = Value::from(drawn.sum::<usize>());
        Ok(Map::from_iter([("drawn".to_string(), drawn)]))
    }
}

/// Trains in every second step only, with a penalty.
#[derive(Debug)]
struct EverySecond {
    /// Sum of the steps.
    seen: f32,
}

impl MethodHooks for EverySecond {
    fn penalty(&self, states: &States) -> Option<Tensor<1>> {
        let squares = |(_, state): (&str, &Offset)| state.value.val().square().sum() * 3.0;
        states.of::<Offset>().map(squares).next()
    }

    fn before_step(&mut self, step: usize, states: &States, gradients: &mut GradientsParams) {
        for (_, state) in states.of::<Offset>() {
            if let Some(gradient) = gradients.get::<2>(state.value.id)
                && step.is_multiple_of(2)
            {
                gradients.register(state.value.id, gradient.zeros_like());
            }
        }
    }

    fn after_step(&mut self, step: usize, states: &mut States) {
        self.seen += step as f32;
        states.edit::<Offset>(|_, state| state.drawn = step);
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        BTreeMap::from([("seen".to_string(), TensorData::new(vec![self.seen], [1]))])
    }

    fn restore(
        &mut self,
        tensors: &mut BTreeMap<String, TensorData>,
        _states: &States,
    ) -> Result<(), String> {
        let seen = tensors.remove("seen").ok_or("`seen` is missing")?;
        self.seen = seen.iter::<f32>().sum();
        Ok(())
    }
}

#[derive(Module, Debug)]
struct Net {
    layer: Linear,
}

fn net() -> Net {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    Net {
        layer: LinearConfig::new(3, 2).init(&device.autodiff()),
    }
}

/// One step of a loop that knows no method; the loss is the sum of the weight and the bias.
fn step(model: Net, training: &mut TrainingHooks) -> Net {
    let input = Tensor::<2>::ones([1, 3], &model.layer.weight.device());
    let mut loss = model.layer.forward(input).sum();
    if let Some(penalty) = training.penalty(&model).unwrap() {
        loss = loss + penalty;
    }
    let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
    training.before_step(&model, &mut gradients).unwrap();
    let model = SgdConfig::new().init().step(0.5, model, gradients);
    training.after_step(model).unwrap()
}

fn offset(model: &Net) -> (Vec<f32>, usize) {
    let (place, state) = model.adapter_states::<Offset>("a").unwrap().remove(0);
    assert_eq!(place, "layer");
    let values = state.value.val().into_data().iter::<f32>().collect();
    (values, state.drawn)
}

#[test]
fn a_loop_that_knows_no_method_runs_its_hooks() {
    let mut model = net().attach("a", &OffsetConfig::default()).unwrap();
    let mut training = model.training_hooks(3).unwrap();
    // The gradient of the loss is 1 and that of the penalty six times the value.
    for (at, expected) in [-0.5, -0.5, 0.5].into_iter().enumerate() {
        model = step(model, &mut training);
        assert_eq!(offset(&model), (vec![expected; 6], at + 1));
        assert_eq!(training.step(), at + 1);
    }
    let bare = model.activate(&[]).unwrap().training_hooks(3).unwrap();
    assert!(bare.penalty(&model).unwrap().is_none());
}

#[test]
fn a_method_has_a_say_in_what_is_saved() {
    let model = net().attach("a", &OffsetConfig::default()).unwrap();
    let mut training = model.training_hooks(3).unwrap();
    let model = step(model, &mut training);
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path()).unwrap();
    let config = checkpoint::read_config(dir.path()).unwrap();
    assert_eq!(config["drawn"], 1);
    let saved = net().load_adapter("a", dir.path(), &[&OFFSET]).unwrap();
    assert_eq!(offset(&saved).0, vec![0.0; 6]);
    assert_eq!(offset(&model).0, vec![-0.5; 6], "saving changed the model");
}

#[test]
fn a_training_is_resumed_where_it_was_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("training.safetensors");
    let base = net();
    let model = base.attach("a", &OffsetConfig::default()).unwrap();
    let mut whole = model.training_hooks(5).unwrap();
    let model = step(model, &mut whole);
    whole.save(&file).unwrap();
    let mut resumed = TrainingHooks::resume(&model, 5, &file).unwrap();
    let ends = [&mut whole, &mut resumed].map(|training| {
        let model = step(step(model.clone(), training), training);
        let end = dir.path().join("end.safetensors");
        training.save(&end).unwrap();
        (offset(&model), fs::read(&end).unwrap())
    });
    assert_eq!(ends[0].0, (vec![0.5; 6], 3));
    assert_eq!(ends[0], ends[1]);

    let refusal = |model: &Net, steps| {
        let refused = TrainingHooks::resume(model, steps, &file).unwrap_err();
        refused.to_string()
    };
    assert!(refusal(&model, 6).contains("of 5 steps"));
    let other = base.attach("b", &OffsetConfig::default()).unwrap();
    assert!(refusal(&other, 5).contains("`seen` is missing"));
    assert!(refusal(&base, 5).contains("a.seen"));
    assert!(TrainingHooks::resume(&model, 5, dir.path().join("none")).is_err());
}

//! AdaLoRA's schedule in a training loop that does not know of it: ranks, saving, resuming.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Tensor, TensorData};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule as _, TrainingHooks, checkpoint};
use peft_reparameterization::{AdaLora, AdaLoraConfig, METHODS};

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

fn states(model: &Net) -> Vec<(String, AdaLora)> {
    model.adapter_states::<AdaLora>("x").unwrap()
}

/// Those of a loss whose gradients are waves.
fn gradients(model: &Net, step: usize) -> GradientsParams {
    let mut loss = Tensor::<1>::zeros([1], &model.one.weight.device());
    for (place, state) in states(model) {
        let at = usize::from(place == "two");
        for (param, phase) in [(&state.lora_a, 4), (&state.lora_e, 5), (&state.lora_b, 6)] {
            let value = param.val();
            let factor = wave(&value, at + phase + step);
            loss = loss + (value * factor).sum();
        }
    }
    GradientsParams::from_grads(loss.backward(), model)
}

/// Steps up to the one of this number, of an optimizer that changes nothing.
fn advance(mut model: Net, training: &mut TrainingHooks, last: usize) -> Net {
    while training.step() < last {
        let mut gradients = gradients(&model, training.step() + 1);
        training.before_step(&model, &mut gradients).unwrap();
        model = training.after_step(model).unwrap();
    }
    model
}

#[test]
fn ranks_are_allocated_as_upstream_does() {
    let mut model = start();
    let mut training = model.training_hooks(7).unwrap();
    let penalty = training.penalty(&model).unwrap().unwrap();
    let penalty = penalty.into_scalar::<f32>();
    assert!((penalty - 3.477_73).abs() < 1e-4, "{penalty}");
    for step in 1..=7 {
        model = advance(model, &mut training, step);
        let expected = match step {
            1 => [[true; 4]; 2],
            2 | 3 => [[true, true, false, true], [false, true, false, true]],
            _ => [[false, true, false, true], [false, true, false, true]],
        };
        for ((place, state), expected) in states(&model).into_iter().zip(expected) {
            let values = state.lora_e.val();
            assert!(values.is_require_grad());
            let left: Vec<bool> = values.into_data().iter().map(|e: f32| e != 0.0).collect();
            assert_eq!(left, expected, "step {step}, {place}");
            // Before that, values may come back.
            let decided = (step >= 5).then(|| expected.to_vec());
            assert_eq!(state.kept, decided, "step {step}, {place}");
        }
    }
}

/// Saves the adapter and loads it into the bare model: that must be the same. Returns the ranks.
fn saved(model: &Net, dir: &std::path::Path) -> (Net, Vec<usize>) {
    model.save_adapter("x", dir).unwrap();
    let base = model.unload().unwrap();
    let loaded = base.load_adapter("x", dir, METHODS).unwrap();
    for (ours, read) in [(&model.one, &loaded.one), (&model.two, &loaded.two)] {
        let ours = ours.weight.val();
        let distance = (ours.clone() - read.weight.val()).abs().max();
        let (distance, largest) = (
            distance.into_scalar::<f32>(),
            ours.abs().max().into_scalar::<f32>(),
        );
        assert!(distance < 1e-5 * largest, "{distance} of {largest}");
    }
    let ranks = states(&loaded).iter().map(|(_, s)| s.rank()).collect();
    (loaded, ranks)
}

#[test]
fn what_is_saved_is_smaller_once_ranks_are_decided() {
    let dir = tempfile::tempdir().unwrap();
    let model = start();
    let mut training = model.training_hooks(7).unwrap();
    let model = advance(model, &mut training, 4);
    assert_eq!(saved(&model, dir.path()).1, [4, 4], "a pause");
    let model = advance(model, &mut training, 7);
    let (loaded, ranks) = saved(&model, dir.path());
    assert_eq!(ranks, [2, 2]);
    let pattern = |dir| checkpoint::read_config(dir).unwrap()["rank_pattern"].clone();
    let written = pattern(dir.path());
    let left = [false, true, false, true];
    assert_eq!(written["one.lora_E"], serde_json::json!(left));

    // The small adapter has the ranks that it shall have: its file is of the first one's length.
    let mut training = loaded.training_hooks(7).unwrap();
    let loaded = advance(loaded, &mut training, 7);
    assert_eq!(saved(&loaded, dir.path()).1, [2, 2]);
    assert_eq!(pattern(dir.path()), written);

    // What training without the schedule brings back is not lost.
    let model = model
        .edit_adapter::<AdaLora>("x", |_, state| {
            let e = state.lora_e.clone();
            state.lora_e = e.map(|e| (e.detach() + 1.0).detach().require_grad());
        })
        .unwrap();
    assert_eq!(saved(&model, dir.path()).1, [4, 4]);
}

#[test]
fn a_schedule_needs_steps_and_ranks_to_take() {
    let model = start();
    let refused = model.training_hooks(3).unwrap_err().to_string();
    assert!(refused.contains("total_step"), "{refused}");
    let bare = model.unload().unwrap();
    let model = bare.attach("x", &AdaLoraConfig::new(2, 3)).unwrap();
    let refused = model.training_hooks(7).unwrap_err().to_string();
    assert!(refused.contains("target_r"), "{refused}");
}

/// So many steps of a loop that knows no method.
fn train(
    fixture: &Fixture,
    mut model: TinyTransformer,
    training: &mut TrainingHooks,
    steps: usize,
) -> TinyTransformer {
    let mut optimizer = SgdConfig::new().init();
    for _ in 0..steps {
        let mut loss = fixture.loss(&model);
        if let Some(penalty) = training.penalty(&model).unwrap() {
            loss = loss + penalty;
        }
        let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
        training.before_step(&model, &mut gradients).unwrap();
        model = optimizer.step(0.2, model, gradients);
        model = training.after_step(model).unwrap();
    }
    model
}

/// Everything that training has made of the adapter.
fn values(model: &TinyTransformer) -> Vec<(String, [TensorData; 3], Option<Vec<bool>>)> {
    let states = model.adapter_states::<AdaLora>("x").unwrap().into_iter();
    let of = |(place, state): (String, AdaLora)| {
        let values = [&state.lora_a, &state.lora_e, &state.lora_b];
        (
            place,
            values.map(|value| value.val().into_data()),
            state.kept,
        )
    };
    states.map(of).collect()
}

#[test]
fn a_resumed_training_ends_with_the_same_numbers() {
    const STEPS: usize = 9;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("training.safetensors");
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    let config = AdaLoraConfig::new(4, 2)
        .with_lora_alpha(64.0)
        .with_phases(1, 3, 2)
        .with_targets(["query", "value"]);
    let start = fixture.base.attach("x", &config).unwrap();
    let mut training = start.training_hooks(STEPS).unwrap();
    let whole = values(&train(&fixture, start.clone(), &mut training, STEPS));
    let masks = whole.iter().filter_map(|(_, _, kept)| kept.as_ref());
    let left = masks.flatten().filter(|kept| **kept).count();
    assert_eq!(left, 2 * whole.len());

    // Among the first allocations, before the mask is fixed, after it is.
    for at in [2, 5, 7] {
        let mut training = start.training_hooks(STEPS).unwrap();
        let model = train(&fixture, start.clone(), &mut training, at);
        training.save(&file).unwrap();
        let mut resumed = TrainingHooks::resume(&model, STEPS, &file).unwrap();
        assert_eq!(resumed.step(), at);
        let model = train(&fixture, model, &mut resumed, STEPS - at);
        assert_eq!(values(&model), whole, "resumed after step {at}");
    }

    // A file of other ranks.
    let other = AdaLoraConfig::new(3, 2)
        .with_phases(1, 3, 2)
        .with_targets(["query", "value"]);
    let other = fixture.base.attach("x", &other).unwrap();
    let refused = TrainingHooks::resume(&other, STEPS, &file).unwrap_err();
    assert!(refused.to_string().contains("kept"), "{refused}");
}

//! AdaMSS in a training loop: which groups go on, and what a file of another base does.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule as _, TrainingHooks};
use peft_reparameterization::{AdamssConfig, AdamssLinear, METHODS};

#[derive(Module, Debug)]
struct Net {
    one: Linear,
    two: Linear,
}

fn wave(shape: [usize; 2], phase: f32, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..shape[0] * shape[1])
        .map(|at| (at as f32 * 0.7 + phase).sin() + (at as f32 * at as f32 * 0.013).cos())
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn net(phase: f32) -> Net {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let device = device.autodiff();
    let mut net = Net {
        one: LinearConfig::new(4, 9).init(&device),
        two: LinearConfig::new(5, 7).with_bias(false).init(&device),
    };
    for layer in [&mut net.one, &mut net.two] {
        let shape = layer.weight.dims();
        layer.weight = layer
            .weight
            .clone()
            .map(|old| wave(shape, phase, &old.device()).detach().require_grad());
        // The bias counts as a row of the weight.
        let bias = layer.bias.take();
        layer.bias = bias.map(|bias| {
            bias.map(|old| {
                let [width] = old.dims();
                let values: Vec<f32> = (0..width)
                    .map(|at| (at as f32 * 1.3 + phase).sin())
                    .collect();
                let data = TensorData::new(values, [width]);
                Tensor::<1>::from_data(data, &old.device()).require_grad()
            })
        });
    }
    net
}

fn config() -> AdamssConfig {
    AdamssConfig::new(4, 3, 2)
        .with_use_asa(true)
        .with_asa_target_subspaces(2)
        .with_init_warmup(1)
        .with_final_warmup(5)
        .with_mask_interval(2)
        .with_asa_schedule_exponent(1.0)
        .with_asa_importance_beta(0.7)
        .with_asa_uncertainty_beta(0.6)
        .with_targets(["one", "two"])
}

type Values = Vec<f64>;

/// Of both factors of each group, by layer and number.
type Numbers = BTreeMap<(String, usize), [Values; 2]>;

/// Means and deviations of both factors.
type Seen = [(Values, Values); 2];

/// Both factors of each group, by layer and number.
fn factors(model: &Net) -> BTreeMap<(String, usize), [Tensor<2>; 2]> {
    let states = model.adapter_states::<AdamssLinear>("x").unwrap();
    let all = states.into_iter().flat_map(|(place, state)| {
        let groups = state.subspaces;
        let pairs: Vec<_> = groups.a.iter().zip(&groups.b).collect();
        let values = pairs.into_iter().enumerate();
        let values = values.map(|(at, (a, b))| ((place.clone(), at), [a.val(), b.val()]));
        values.collect::<Vec<_>>()
    });
    all.collect()
}

fn numbers(model: &Net) -> Numbers {
    let values = |factor: Tensor<2>| factor.into_data().iter().collect();
    let all = factors(model).into_iter();
    all.map(|(group, pair)| (group, pair.map(values))).collect()
}

/// Those of a loss of which the first layer's second group and the second's first matter most, and others less each.
fn gradients(model: &Net, step: usize) -> (GradientsParams, Numbers) {
    let mut loss = Tensor::<1>::zeros([1], &model.one.weight.device());
    let mut known = BTreeMap::new();
    for ((place, group), pair) in factors(model) {
        let weight = match (place.as_str(), group) {
            ("one", 1) => 9.0,
            ("two", 0) => 7.0,
            ("one", _) => 1.0 + group as f32,
            _ => 0.3 * group as f32,
        };
        let mut given = Vec::new();
        for (at, factor) in pair.into_iter().enumerate() {
            let phase = (step + 3 * at + group) as f32;
            let slope = wave(factor.dims(), phase, &factor.device()) * weight;
            given.push(slope.to_data().iter().collect::<Values>());
            loss = loss + (factor * slope).sum();
        }
        known.insert((place, group), given.try_into().unwrap());
    }
    (GradientsParams::from_grads(loss.backward(), model), known)
}

/// The schedule once more, on plain numbers: means and deviations by group and factor, and the groups that go on.
#[derive(Default)]
struct Plain {
    seen: BTreeMap<(String, usize), Seen>,
    stopped: Vec<(String, usize)>,
}

impl Plain {
    /// After the step of this number from 0, with the values that it left.
    fn step(&mut self, step: usize, values: &Numbers, gradients: &Numbers) {
        if !(1..=5).contains(&step) {
            return;
        }
        for (group, pair) in values {
            if self.stopped.contains(group) {
                continue;
            }
            let fresh = || {
                pair.each_ref()
                    .map(|v| (vec![0.0; v.len()], vec![0.0; v.len()]))
            };
            let seen = self.seen.entry(group.clone()).or_insert_with(fresh);
            let slopes = &gradients[group];
            for ((mean, deviation), (value, slope)) in seen.iter_mut().zip(pair.iter().zip(slopes))
            {
                let products = value
                    .iter()
                    .zip(slope)
                    .map(|(value, slope)| (value * slope).abs());
                let remembered = mean.iter_mut().zip(deviation.iter_mut());
                for ((mean, deviation), now) in remembered.zip(products) {
                    *deviation = 0.6 * *deviation + 0.4 * (now - *mean).abs();
                    *mean = 0.7 * *mean + 0.3 * now;
                }
            }
        }
        if !step.is_multiple_of(2) {
            return;
        }
        // Six groups at first, two at the end, evenly.
        let most = 2 + (4.0 * (1.0 - (step - 1) as f64 / 4.0)) as usize;
        let mut scores: Vec<(f64, (String, usize))> = std::mem::take(&mut self.seen)
            .into_iter()
            .map(|(group, seen)| {
                let score = seen.iter().map(|(mean, deviation)| {
                    let products = mean.iter().zip(deviation).map(|(m, d)| m * d);
                    products.sum::<f64>() / mean.len() as f64
                });
                (score.sum(), group)
            })
            .collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        let stopped = scores.into_iter().skip(most).map(|(_, group)| group);
        self.stopped.extend(stopped);
    }
}

/// Steps up to the one of this number; `seen` gets the model after each, and its gradients.
fn advance(
    mut model: Net,
    training: &mut TrainingHooks,
    last: usize,
    mut seen: impl FnMut(usize, &Net, &Numbers),
) -> Net {
    let mut optimizer = SgdConfig::new().init();
    while training.step() < last {
        let step = training.step();
        let (mut gradients, known) = gradients(&model, step);
        training.before_step(&model, &mut gradients).unwrap();
        model = optimizer.step(0.01, model, gradients);
        model = training.after_step(model).unwrap();
        seen(step, &model, &known);
    }
    model
}

#[test]
fn groups_that_matter_least_are_no_longer_trained() {
    let mut before = net(0.0).attach("x", &config()).unwrap();
    let mut training = before.training_hooks(9).unwrap();
    let mut plain = Plain::default();
    let mut left = Vec::new();
    for step in 0..9 {
        let stopped = plain.stopped.clone();
        let model = advance(
            before.clone(),
            &mut training,
            step + 1,
            |at, model, known| {
                assert_eq!(at, step);
                plain.step(at, &numbers(model), known);
            },
        );
        let (old, new) = (numbers(&before), numbers(&model));
        for (group, values) in &new {
            let same = old[group] == *values;
            assert_eq!(same, stopped.contains(group), "step {step}, {group:?}");
        }
        left.push(new.len() - plain.stopped.len());
        before = model;
    }
    assert_eq!(left, [6, 6, 5, 5, 3, 3, 3, 3, 3]);
    for group in [("one", 1), ("two", 0)] {
        let group = (group.0.to_string(), group.1);
        assert!(!plain.stopped.contains(&group), "{group:?}");
    }
}

#[test]
fn a_resumed_training_ends_with_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("training.safetensors");
    let start = net(0.0).attach("x", &config()).unwrap();
    let mut training = start.training_hooks(8).unwrap();
    let whole = numbers(&advance(start.clone(), &mut training, 8, |_, _, _| {}));
    for at in [2, 3, 4, 7] {
        let mut training = start.training_hooks(8).unwrap();
        let model = advance(start.clone(), &mut training, at, |_, _, _| {});
        training.save(&file).unwrap();
        let mut resumed = TrainingHooks::resume(&model, 8, &file).unwrap();
        let model = advance(model, &mut resumed, 8, |_, _, _| {});
        assert_eq!(numbers(&model), whole, "resumed after step {at}");
    }
    // A file of other groups.
    let other = AdamssConfig {
        num_subspaces: 4,
        ..config()
    };
    let other = net(0.0).attach("x", &other).unwrap();
    let refused = TrainingHooks::resume(&other, 8, &file).unwrap_err();
    assert!(refused.to_string().contains("trained"), "{refused}");
}

#[test]
fn a_file_of_another_base_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = net(0.0).attach("x", &config()).unwrap();
    model.save_adapter("x", dir.path()).unwrap();
    net(0.0).load_adapter("x", dir.path(), METHODS).unwrap();
    // Groups of the first layer have 3, 3 and 3 outputs here, and 2, 5 and 2 there.
    let refused = net(1.9).load_adapter("x", dir.path(), METHODS).unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains("num_subspaces") && refused.contains("trained on this base"),
        "{refused}"
    );
}

#[test]
fn what_cannot_work_is_refused() {
    let base = net(0.0);
    for (config, word) in [
        (config().with_mask_interval(0), "mask_interval"),
        (
            config().with_asa_target_subspaces(0),
            "asa_target_subspaces",
        ),
        (config().with_init_warmup(5), "init_warmup"),
        (
            config().with_asa_schedule_exponent(0.0),
            "asa_schedule_exponent",
        ),
        (config().with_num_subspaces(0), "num_subspaces"),
        (
            config().with_asa_importance_beta(1.0),
            "asa_importance_beta",
        ),
    ] {
        let refused = base.attach("x", &config).unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
    }
    // Without the schedule, its fields do not matter.
    let without = config().with_use_asa(false).with_mask_interval(0);
    base.attach("x", &without).unwrap();

    let mut zeros = net(0.0);
    zeros.two.weight = zeros.two.weight.map(|old| old.zeros_like().require_grad());
    // Of one singular vector, which is some output's alone: two kinds of outputs.
    let one = AdamssConfig::new(1, 3, 1).with_targets(["two"]);
    let refused = zeros.attach("x", &one).unwrap_err().to_string();
    assert!(refused.contains("at most 2"), "{refused}");

    let json = serde_json::json!({ "peft_type": "ADAMSS", "init_weights": "gaussian" });
    let refused = serde_json::from_value::<AdamssConfig>(json).unwrap_err();
    assert!(refused.to_string().contains("orthogonal"), "{refused}");
}

/// Upstream's names for the beginning.
#[test]
fn the_beginning_has_upstreams_names() {
    use peft_core::method::MethodConfig as _;
    for (written, ours) in [
        (serde_json::json!("orthogonal"), true),
        (serde_json::Value::Null, false),
        (false.into(), false),
    ] {
        let json = serde_json::json!({ "init_weights": written });
        let config: AdamssConfig = serde_json::from_value(json).unwrap();
        assert_eq!(config.init_weights, ours);
        let again = if ours {
            "orthogonal".into()
        } else {
            serde_json::Value::Null
        };
        assert_eq!(config.to_json()["init_weights"], again);
    }
    assert!(AdamssConfig::default().init_weights);
}

//! Bottleneck adapters that are trained otherwise than they are used: AdapterDrop, SparseAdapter, AdaMix.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Tensor, TensorData, Tolerance};
use peft_additive::{
    Bottleneck, BottleneckConfig, ExpertSharing, Ia3Config, Projection, Pruning, drop_adapters,
};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::device::cpu_devices;
use peft_core::nn::{HiddenState, consistency_loss};
use peft_core::state::AdapterState as _;
use peft_core::{Error, HiddenSite, PeftModule, TrainingHooks};

fn config() -> BottleneckConfig {
    BottleneckConfig::houlsby().with_reduction_factor(4.0)
}

/// Steps of `AdamW` with the model's hooks; the losses before each.
fn train(
    fixture: &Fixture,
    mut model: TinyTransformer,
    hooks: &mut TrainingHooks,
    steps: usize,
) -> (TinyTransformer, Vec<f32>) {
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = fixture.loss(&model);
        losses.push(loss.clone().into_scalar::<f32>());
        let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
        hooks.before_step(&model, &mut gradients).unwrap();
        model = optimizer.step(5e-3, model, gradients);
        model = hooks.after_step(model).unwrap();
    }
    (model, losses)
}

/// All weights of Down and Up.
fn weights(model: &TinyTransformer) -> Vec<Vec<f32>> {
    let states = model.adapter_states::<Bottleneck>("a").unwrap();
    let projections = states
        .into_iter()
        .flat_map(|(_, state)| [state.down, state.up]);
    let values = projections.map(|projection| match projection {
        Projection::Dense(dense) => dense.weight.val().into_data().iter::<f32>().collect(),
        Projection::Phm(_) => panic!("dense"),
    });
    values.collect()
}

fn zeros(weights: &[Vec<f32>]) -> Vec<bool> {
    weights
        .iter()
        .flatten()
        .map(|value| *value == 0.0)
        .collect()
}

#[test]
fn what_is_pruned_is_the_share_asked_for_and_stays_pruned() {
    for (name, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        for pruning in [Pruning::Magnitude, Pruning::Random] {
            let config = config().with_sparsity(0.75).with_pruning(pruning);
            let model = fixture.base.attach("a", &config).unwrap();
            let fresh = weights(&model);
            let pruned = zeros(&fresh);
            let count = pruned.iter().filter(|pruned| **pruned).count();
            // 4 sites, 2 matrices of 32 · 8.
            assert_eq!((count, pruned.len()), (1536, 2048), "{pruning:?} on {name}");
            let least = fresh.iter().flatten().filter(|value| **value != 0.0);
            let least = least.fold(f32::MAX, |least, value| least.min(value.abs()));
            // The quarter of largest magnitude of a normal distribution is beyond 1.15 deviations.
            let is_cut = least > 0.02;
            assert_eq!(is_cut, pruning == Pruning::Magnitude, "{least}");
            let mut hooks = model.training_hooks(5).unwrap();
            let (model, losses) = train(&fixture, model, &mut hooks, 5);
            assert!(losses[4] < losses[0], "{losses:?}");
            assert_eq!(zeros(&weights(&model)), pruned, "{pruning:?} on {name}");
            // From a file, too.
            let dir = tempfile::tempdir().unwrap();
            model.save_adapter("a", dir.path()).unwrap();
            let loaded = fixture
                .base
                .load_adapter("a", dir.path(), peft_additive::METHODS)
                .unwrap();
            let mut hooks = loaded.training_hooks(2).unwrap();
            let (loaded, _) = train(&fixture, loaded, &mut hooks, 2);
            assert_eq!(zeros(&weights(&loaded)), pruned, "{pruning:?} on {name}");
        }
    }
}

#[test]
fn snip_keeps_what_the_first_loss_depends_on_most() {
    let (_, device) = cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    let config = config().with_sparsity(0.9);
    let model = fixture.base.attach("a", &config).unwrap();
    let fresh = weights(&model);
    assert!(!zeros(&fresh).contains(&true));
    let gradients = fixture.loss(&model).backward();
    let states = model.adapter_states::<Bottleneck>("a").unwrap();
    let projections = states
        .iter()
        .flat_map(|(_, state)| [&state.down, &state.up]);
    let mut scores: Vec<f32> = Vec::new();
    for projection in projections {
        let Projection::Dense(dense) = projection else {
            panic!("dense")
        };
        let weight = dense.weight.val();
        let gradient = weight.grad(&gradients).unwrap();
        let score = (weight.inner() * gradient).abs().into_data();
        scores.extend(score.iter::<f32>());
    }
    let mut sorted = scores.clone();
    sorted.sort_by(f32::total_cmp);
    let border = sorted[1843];
    let mut hooks = model.training_hooks(4).unwrap();
    let (model, _) = train(&fixture, model, &mut hooks, 4);
    for (pruned, score) in zeros(&weights(&model)).into_iter().zip(scores) {
        assert_eq!(pruned, score < border, "{score}, {border}");
    }
    // Pruned once: another training keeps the mask.
    let before = zeros(&weights(&model));
    let mut hooks = model.training_hooks(2).unwrap();
    let (model, _) = train(&fixture, model, &mut hooks, 2);
    assert_eq!(zeros(&weights(&model)), before);
}

/// No gradient reaches them, and what has no gradient would be pruned first.
#[test]
fn snip_leaves_adapters_alone_that_were_dropped() {
    let (_, device) = cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    let config = config().with_sparsity(0.75);
    let model = fixture.base.attach("a", &config).unwrap();
    let fresh = weights(&model);
    let model = drop_adapters(&model, "a", 1).unwrap();
    let mut hooks = model.training_hooks(2).unwrap();
    let (model, _) = train(&fixture, model, &mut hooks, 2);
    let trained = weights(&model);
    // The first block's two sites have two matrices each.
    let (dropped, used) = trained.split_at(4);
    assert_eq!(dropped, &fresh[..4]);
    let pruned = zeros(used).into_iter().filter(|pruned| *pruned).count();
    assert_eq!(pruned, 768);
}

#[test]
fn a_step_leaves_out_first_blocks_and_a_resumed_training_the_same() {
    let (_, device) = cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    let config = config().with_adapter_drop(1).with_init_weights_seed(4);
    let steps = 12;
    let start = || fixture.base.attach("a", &config).unwrap();
    let model = start();
    let mut hooks = model.training_hooks(steps).unwrap();
    let mut left_out = 0;
    let mut model = model;
    for step in 0..steps {
        let loss = fixture.loss(&model).into_scalar::<f32>();
        let without = drop_adapters(&model, "a", 1).unwrap();
        let without = fixture.loss(&without).into_scalar::<f32>();
        left_out += usize::from((loss - without).abs() < 1e-7);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hooks.safetensors");
        hooks.save(&file).unwrap();
        // A copy without what was drawn: from its tensors.
        let copy = start();
        let tensors = model.adapter_tensors("a").unwrap();
        let copy = copy.with_adapter_tensors("a", tensors).unwrap();
        let _resumed = TrainingHooks::resume(&copy, steps, &file).unwrap();
        let again = fixture.loss(&copy).into_scalar::<f32>();
        assert!((loss - again).abs() < 1e-6, "step {step}: {loss}, {again}");
        // In use all adapters are there.
        assert_eq!(
            fixture.outputs(&model).unwrap(),
            fixture.outputs(&copy).unwrap()
        );
        (model, _) = train(&fixture, model, &mut hooks, 1);
    }
    assert!((1..steps).contains(&left_out), "{left_out} of {steps}");
    let all = config.with_adapter_drop(2);
    let refused = fixture.base.attach("a", &all).unwrap();
    let refused = refused.training_hooks(steps).unwrap_err().to_string();
    assert!(refused.contains("adapter_drop"), "{refused}");
}

/// The loss of a model with the adapter of `model`, but without anything that a training has told it.
fn plain_loss(fixture: &Fixture, config: &BottleneckConfig, model: &TinyTransformer) -> f32 {
    let plain = fixture.base.attach("a", config).unwrap();
    let tensors = model.adapter_tensors("a").unwrap();
    let plain = plain.with_adapter_tensors("a", tensors).unwrap();
    fixture.loss(&plain).into_scalar::<f32>()
}

#[test]
fn what_a_training_draws_is_of_its_own_model_and_goes_with_its_hooks() {
    let (_, device) = cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    let mut left_out = 0;
    for seed in 0..4 {
        let config = config().with_adapter_drop(1).with_init_weights_seed(seed);
        let original = fixture.trained("a", &config).unwrap();
        let full = plain_loss(&fixture, &config, &original);
        let steps = 6;
        let mut hooks = original.training_hooks(steps).unwrap();
        let mut model = original.clone();
        // The training ends early.
        for _ in 0..steps - 1 {
            let found = fixture.loss(&original).into_scalar::<f32>();
            assert!((found - full).abs() < 1e-6, "seed {seed}: {found}, {full}");
            (model, _) = train(&fixture, model, &mut hooks, 1);
            let found = fixture.loss(&model).into_scalar::<f32>();
            let before = model.clone();
            if (found - plain_loss(&fixture, &config, &model)).abs() > 1e-6 {
                left_out += 1;
                // A copy is free of it once the step is done.
                (model, _) = train(&fixture, model, &mut hooks, 1);
                let found = fixture.loss(&before).into_scalar::<f32>();
                let full = plain_loss(&fixture, &config, &before);
                assert!((found - full).abs() < 1e-6, "seed {seed}: {found}, {full}");
                break;
            }
        }
        drop(hooks);
        let found = fixture.loss(&model).into_scalar::<f32>();
        let full = plain_loss(&fixture, &config, &model);
        assert!((found - full).abs() < 1e-6, "seed {seed}: {found}, {full}");
        // Nor does what a resumed training is told outlive it.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hooks.safetensors");
        let mut hooks = original.training_hooks(steps).unwrap();
        let (model, _) = train(&fixture, original.clone(), &mut hooks, 2);
        hooks.save(&file).unwrap();
        drop(hooks);
        drop(TrainingHooks::resume(&model, steps, &file).unwrap());
        let found = fixture.loss(&model).into_scalar::<f32>();
        let full = plain_loss(&fixture, &config, &model);
        assert!((found - full).abs() < 1e-6, "seed {seed}: {found}, {full}");
    }
    assert!(left_out > 0);
}

#[test]
fn snip_keeps_the_same_weights_where_blocks_are_left_out_later() {
    let (_, device) = cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    for seed in 0..6 {
        let config = config().with_sparsity(0.9).with_init_weights_seed(seed);
        let masks = [config.clone(), config.with_adapter_drop(1)].map(|config| {
            let model = fixture.base.attach("a", &config).unwrap();
            let mut hooks = model.training_hooks(4).unwrap();
            let (model, _) = train(&fixture, model, &mut hooks, 4);
            zeros(&weights(&model))
        });
        assert!(masks[0] == masks[1], "seed {seed}");
        // 4 sites, 2 matrices of 32 · 8.
        assert_eq!(masks[0].iter().filter(|pruned| **pruned).count(), 1843);
    }
}

/// A model of one block, which has no number.
#[derive(Module, Debug)]
struct OneBlock {
    layer: Linear,
    site: HiddenSite,
}

#[test]
fn adapters_are_dropped_from_blocks_of_bottleneck_adapters_only() {
    let (_, device) = cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    let ia3 = Ia3Config::new().with_targets(["key"]);
    let ia3 = fixture.base.attach("a", &ia3).unwrap();
    let refused = drop_adapters(&ia3, "a", 1).unwrap_err();
    assert!(matches!(refused, Error::Config { .. }));
    assert!(refused.to_string().contains("`name` is"), "{refused}");
    assert!(drop_adapters(&ia3, "a", 0).is_ok());
    let model = fixture.base.attach("a", &config()).unwrap();
    assert!(matches!(
        drop_adapters(&model, "b", 1),
        Err(Error::UnknownAdapter { .. })
    ));
    let one = OneBlock {
        layer: LinearConfig::new(8, 8).init(&device),
        site: HiddenSite::new(HiddenState::FeedForwardOutput, 8),
    };
    let pfeiffer = BottleneckConfig::pfeiffer().with_reduction_factor(4.0);
    let one = one.attach("a", &pfeiffer).unwrap();
    let refused = drop_adapters(&one, "a", 2).unwrap_err();
    assert!(matches!(refused, Error::Config { .. }));
    assert!(refused.to_string().contains("`blocks` is 2"), "{refused}");
    assert!(drop_adapters(&one, "a", 0).is_ok());
}

#[test]
fn dropped_adapters_are_left_out_until_they_are_asked_for() {
    for (_, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        for config in [
            config(),
            BottleneckConfig::adapter_plus().with_reduction_factor(4.0),
        ] {
            let model = fixture.trained("a", &config).unwrap();
            let full = fixture.outputs(&model).unwrap();
            let dropped = drop_adapters(&model, "a", 1).unwrap();
            // As if the first block had never had any.
            let dir = tempfile::tempdir().unwrap();
            let fewer = config.clone().with_leave_out([0]);
            let late = fixture.base.attach("a", &fewer).unwrap();
            let mut tensors = model.adapter_tensors("a").unwrap();
            tensors.retain(|key, _| !key.contains("layer.0."));
            let late = late.with_adapter_tensors("a", tensors).unwrap();
            let tolerance = Tolerance::<f32>::absolute(1e-6);
            let expected = fixture.outputs(&late).unwrap();
            fixture
                .outputs(&dropped)
                .unwrap()
                .assert_approx_eq(&expected, tolerance);
            assert_ne!(full, expected);
            let none = drop_adapters(&model, "a", 2).unwrap();
            let base = fixture.outputs(&fixture.base).unwrap();
            fixture
                .outputs(&none)
                .unwrap()
                .assert_approx_eq(&base, tolerance);
            let again = drop_adapters(&none, "a", 0).unwrap();
            assert_eq!(fixture.outputs(&again).unwrap(), full);
            none.save_adapter("a", dir.path()).unwrap();
            let loaded = fixture
                .base
                .load_adapter("a", dir.path(), peft_additive::METHODS)
                .unwrap();
            assert_eq!(fixture.outputs(&loaded).unwrap(), full);
        }
    }
}

#[test]
fn training_takes_one_expert_and_a_file_has_their_average() {
    for (name, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        for (sharing, extra) in [
            (ExpertSharing::None, 3 * (2 * 256 + 8 + 32)),
            (ExpertSharing::Down, 3 * (256 + 32)),
            (ExpertSharing::Up, 3 * (256 + 8)),
        ] {
            let config = config().with_num_experts(4).with_expert_sharing(sharing);
            let model = fixture.trained("a", &config).unwrap();
            // 4 sites; the first expert has Down, Up and their biases.
            let trained = model.counts().adapter_trainable();
            assert_eq!(trained, 4 * (2 * 256 + 8 + 32 + extra), "{sharing:?}");
            // Forward passes with autodiff differ, and those without do not.
            device.seed(9);
            let losses: Vec<f32> = (0..12)
                .map(|_| fixture.loss(&model).into_scalar::<f32>())
                .collect();
            assert!(losses.iter().any(|loss| (loss - losses[0]).abs() > 1e-6));
            let used = fixture.outputs(&model).unwrap();
            assert_eq!(used, fixture.outputs(&model).unwrap());
            let tensors = model.adapter_tensors("a").unwrap();
            let dir = tempfile::tempdir().unwrap();
            model.save_adapter("a", dir.path()).unwrap();
            let loaded = fixture
                .base
                .load_adapter("a", dir.path(), peft_additive::METHODS)
                .unwrap();
            let stored = loaded.adapter_tensors("a").unwrap();
            assert_eq!(stored.len(), 4 * 4, "{sharing:?} on {name}");
            for (key, found) in stored {
                // `….output.adapter_down.0.weight`: the others are below `….output.experts.1.`.
                let (place, end) = key.split_at(key.find("adapter_").unwrap());
                let others = (1..4)
                    .filter_map(|expert| tensors.get(&format!("{place}experts.{expert}.{end}")));
                let all: Vec<&TensorData> = others.chain([&tensors[&key]]).collect();
                for (index, found) in found.iter::<f32>().enumerate() {
                    let values = all
                        .iter()
                        .map(|data| data.iter::<f32>().nth(index).unwrap());
                    let mean = values.sum::<f32>() / all.len() as f32;
                    assert!((mean - found).abs() < 1e-6, "{key}: {found}, {mean}");
                }
            }
            let tolerance = Tolerance::<f32>::absolute(1e-5);
            fixture
                .outputs(&loaded)
                .unwrap()
                .assert_approx_eq(&used, tolerance);
        }
    }
}

#[test]
fn a_forward_pass_is_that_of_single_experts() {
    let (_, device) = cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    // One site, two experts of either kind: four outputs.
    let config = BottleneckConfig::pfeiffer()
        .with_reduction_factor(4.0)
        .with_leave_out([0])
        .with_num_experts(2);
    let model = fixture.trained("a", &config).unwrap();
    let tensors = model.adapter_tensors("a").unwrap();
    let plain = BottleneckConfig::pfeiffer()
        .with_reduction_factor(4.0)
        .with_leave_out([0]);
    let mut possible = Vec::new();
    for (down, up) in [(false, false), (false, true), (true, false), (true, true)] {
        let chosen = tensors.iter().filter(|(key, _)| !key.contains("experts"));
        let chosen = chosen.map(|(key, data)| {
            let second = if key.contains("adapter_down") {
                down
            } else {
                up
            };
            let other = key.replace("adapter_", "experts.1.adapter_");
            (
                key.clone(),
                if second {
                    tensors[&other].clone()
                } else {
                    data.clone()
                },
            )
        });
        let single = fixture.base.attach("a", &plain).unwrap();
        let single = single.with_adapter_tensors("a", chosen.collect()).unwrap();
        possible.push(fixture.loss(&single).into_scalar::<f32>());
    }
    device.seed(5);
    let mut seen = [false; 4];
    for _ in 0..60 {
        let loss = fixture.loss(&model).into_scalar::<f32>();
        let near = possible
            .iter()
            .position(|single| (single - loss).abs() < 1e-5);
        seen[near.unwrap_or_else(|| panic!("{loss} is none of {possible:?}"))] = true;
    }
    assert_eq!(seen, [true; 4]);
}

#[test]
fn the_consistency_loss_is_the_mean_of_both_divergences() {
    for (_, device) in cpu_devices() {
        let a = [[0.5_f32, -1.0, 2.0], [0.0, 0.3, -0.2]];
        let b = [[0.1_f32, 0.4, 1.0], [2.0, -0.3, 0.2]];
        let softmax = |row: [f32; 3]| {
            let exp = row.map(|value| f64::from(value).exp());
            exp.map(|value| value / exp.iter().sum::<f64>())
        };
        let mut expected = 0.0;
        for (a, b) in a.into_iter().zip(b) {
            for (p, q) in softmax(a).into_iter().zip(softmax(b)) {
                expected += 0.25 * (p * (p / q).ln() + q * (q / p).ln());
            }
        }
        let tensor = |data: [[f32; 3]; 2]| Tensor::<2>::from_data(data, &device);
        let found = consistency_loss(tensor(a), tensor(b)).into_scalar::<f32>();
        assert!(
            (f64::from(found) - expected).abs() < 1e-6,
            "{found}, {expected}"
        );
    }
}

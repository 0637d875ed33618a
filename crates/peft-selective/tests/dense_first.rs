//! `LT-SFT`, `FAR` and `DiffPruning`: what they choose in the middle of a training, and what is left outside of it. `SPT`:
//! what it chooses before one.

use burn::module::{Module as _, Param};
use burn::tensor::{Tensor, TensorData};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::PeftModule as _;
use peft_core::calibration::Calibrate as _;
use peft_core::method::{LayerKind, LayoutParam, Method, SparseDelta};
use peft_core::state::AdapterState as _;
use peft_selective::{
    DIFF_PRUNING, DenseFirst, DiffPruned, DiffPruningConfig, FAR, FarConfig, LT_SFT, LowRankChange,
    LtSftConfig, SptConfig,
};

/// Steps of a training that calls the hooks; `seen` gets the model after each, and its number from 1.
fn trained(
    fixture: &Fixture,
    method: &dyn Method,
    steps: usize,
    seen: impl FnMut(usize, &TinyTransformer),
) -> TinyTransformer {
    let model = fixture.base.attach("a", method).unwrap();
    let mut hooks = model.training_hooks(steps).unwrap();
    fixture.train_with_hooks(model, &mut hooks, steps, seen)
}

/// Values of a parameter, as Burn has it.
fn values(param: &LayoutParam) -> Vec<f32> {
    let data: TensorData = match param.shape().len() {
        1 => param.value::<1>().into_data(),
        2 => param.value::<2>().into_data(),
        4 => param.value::<4>().into_data(),
        rank => panic!("a parameter of rank {rank}"),
    };
    data.iter::<f32>().collect()
}

/// The effective values of all parameters, by name, with their shape and whether a linear layer's weight.
fn effective(model: &TinyTransformer) -> Vec<(String, Vec<f32>)> {
    let layout = model.merge_and_unload().unwrap().layout();
    let own = layout.params.iter().filter(|param| !param.is_tied());
    own.map(|param| (param.name.clone(), values(param)))
        .collect()
}

fn changes(model: &TinyTransformer, base: &TinyTransformer) -> Vec<(String, Vec<f32>)> {
    let pairs = effective(model).into_iter().zip(effective(base));
    pairs
        .map(|((name, new), (_, old))| {
            let changes = new.iter().zip(&old);
            (name, changes.map(|(new, old)| new - old).collect())
        })
        .collect()
}

fn loads_again(fixture: &Fixture, model: &TinyTransformer, method: &dyn Method) {
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path()).unwrap();
    let fresh = Fixture::new(&fixture.device).base;
    let loaded = fresh
        .load_adapter("a", dir.path(), &[method.info()])
        .unwrap();
    assert_eq!(
        fixture.outputs(&loaded).unwrap(),
        fixture.outputs(model).unwrap()
    );
    assert_eq!(effective(&loaded), effective(model));
    assert_eq!(loaded.counts().stored, model.counts().stored);
}

#[test]
fn lt_sft_rewinds_and_goes_on_with_what_changed_most() {
    for (name, device) in peft_core::device::cpu_devices() {
        let fixture = Fixture::new(&device);
        let config = LtSftConfig::new().with_keep_ratio(0.02);
        let fresh = fixture.base.attach("a", &config).unwrap();
        let all = fresh.counts().adapter_trainable();
        let count = (all as f64 * 0.02) as usize;
        let mut dense = Vec::new();
        let model = trained(&fixture, &config, 12, |step, model| match step {
            5 => {
                assert_eq!(model.counts().adapter_trainable(), all, "{name}");
                dense = changes(model, &fixture.base);
            }
            6 => {
                // Rewound: nothing is changed, but one step more is dense before it.
                assert_eq!(model.counts().adapter_trainable(), count, "{name}");
                assert_eq!(effective(model), effective(&fixture.base), "{name}");
            }
            _ => {}
        });
        let ratio = |changes: &[(String, Vec<f32>)]| {
            let all = changes.iter().flat_map(|(_, changes)| changes);
            all.filter(|change| **change != 0.0).count()
        };
        let moved = changes(&model, &fixture.base);
        assert!(ratio(&dense) > all / 2, "{name}: dense at first");
        let kept = ratio(&moved);
        assert!(kept <= count && kept * 10 > count * 9, "{name}: {kept}");
        assert_eq!(model.counts().changed, count, "{name}");
        // Those that go on are, but for the last dense step, those with the largest changes.
        let mut sorted: Vec<f32> = dense.iter().flat_map(|(_, all)| all.clone()).collect();
        sorted.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
        let least = 0.5 * sorted[count].abs();
        let pairs = dense.iter().zip(&moved);
        let pairs = pairs.flat_map(|((_, old), (_, new))| old.iter().zip(new));
        let early = pairs.filter(|(old, new)| **new != 0.0 && old.abs() < least);
        assert!(early.count() * 10 < count, "{name}");
        loads_again(&fixture, &model, &config);
    }
}

#[test]
fn far_goes_on_with_whole_nodes() {
    for (name, device) in peft_core::device::cpu_devices() {
        let fixture = Fixture::new(&device);
        let config = FarConfig::new()
            .with_learner_ratio(0.25)
            .with_priming_ratio(0.5)
            .with_targets(["intermediate.dense"]);
        let mut primed = Vec::new();
        let model = trained(&fixture, &config, 8, |step, model| {
            if step == 4 {
                primed = changes(model, &fixture.base);
            }
        });
        let layout = fixture.base.layout();
        let moved = changes(&model, &fixture.base);
        let mut layers = 0;
        for (param, ((_, moved), (_, primed))) in layout
            .params
            .iter()
            .filter(|param| !param.is_tied())
            .zip(moved.iter().zip(&primed))
        {
            let layer = layout.layer_of(param);
            let shape = param.shape();
            if !layer.name.ends_with("intermediate.dense") {
                assert!(moved.iter().all(|change| *change == 0.0), "{name}");
                continue;
            }
            assert_eq!(layer.kind, LayerKind::Linear);
            let nodes = *shape.last().unwrap();
            let node = |changes: &[f32], node: usize| -> Vec<f32> {
                changes[node..].iter().step_by(nodes).copied().collect()
            };
            let learners: Vec<usize> = (0..nodes)
                .filter(|at| node(moved, *at).iter().any(|change| *change != 0.0))
                .collect();
            assert_eq!(learners.len(), nodes / 4, "{name}: {}", param.name);
            // What goes on keeps what priming gave it, and nothing else does.
            let kept: Vec<usize> = (0..nodes)
                .filter(|at| node(primed, *at).iter().any(|change| *change != 0.0))
                .collect();
            assert_eq!(kept, learners, "{name}: {}", param.name);
            layers += 1;
        }
        assert_eq!(layers, 4, "{name}: two weights and two biases");
        loads_again(&fixture, &model, &config);
    }
}

#[test]
fn diff_pruning_ends_with_so_many_differences_and_no_gates() {
    for (name, device) in peft_core::device::cpu_devices() {
        let fixture = Fixture::new(&device);
        let config = DiffPruningConfig::new()
            .with_keep_ratio(0.02)
            .with_fixed_ratio(0.25);
        let fresh = fixture.base.attach("a", &config).unwrap();
        let states = fresh.adapter_states::<DiffPruned>("a").unwrap();
        let elements: usize = states
            .iter()
            .map(|(_, state)| state.diff.as_ref().unwrap().dims()[0])
            .sum();
        // A difference and a gate for each element, and one gate for each tensor.
        let trainable = fresh.counts().adapter_trainable();
        assert_eq!(trainable, 2 * elements + states.len(), "{name}");
        let count = (elements as f64 * 0.02) as usize;
        let mut before = Vec::new();
        let model = trained(&fixture, &config, 12, |step, model| {
            if step == 8 {
                before = changes(&model.valid(), &fixture.base);
            }
            let fixed = model.counts().adapter_trainable() == count;
            assert_eq!(fixed, step >= 9, "{name}: step {step}");
        });
        let states = model.adapter_states::<DiffPruned>("a").unwrap();
        let gone = |state: &DiffPruned| state.alpha.is_none() && state.group.is_none();
        assert!(states.iter().all(|(_, state)| gone(state)), "{name}");
        let moved = changes(&model, &fixture.base);
        let kept = moved.iter().flat_map(|(_, all)| all);
        let kept = kept.filter(|change| **change != 0.0).count();
        assert!(kept <= count && kept * 10 > count * 9, "{name}: {kept}");
        let dense = before.iter().flat_map(|(_, all)| all);
        assert!(dense.filter(|change| **change != 0.0).count() > 10 * count);
        loads_again(&fixture, &model, &config);
    }
}

/// The penalty is λ · Σ σ(α − ln(−l/r)) · σ(β − ln(−l/r)), by hand.
#[test]
fn the_penalty_is_the_expected_number_of_open_gates() {
    let fixture = Fixture::new(&peft_core::device::cpu_devices().remove(0).1);
    let config = DiffPruningConfig::new()
        .with_targets(["query"])
        .with_sparsity_penalty(0.5)
        .with_alpha_init(0.7)
        .with_concrete_lower(-0.5);
    let model = fixture.base.attach("a", &config).unwrap();
    let hooks = model.training_hooks(10).unwrap();
    let penalty = hooks.penalty(&model).unwrap().unwrap();
    let open = 1.0 / (1.0 + (-(0.7 - (0.5_f64 / 1.5).ln())).exp());
    let expected = 0.5 * 2.0 * f64::from(32 * 32 + 32) * open * open;
    let found = penalty.clone().into_scalar::<f32>();
    assert!(
        (f64::from(found) - expected).abs() < 1e-3 * expected,
        "{found} for {expected}"
    );
    // It pulls the gates down.
    let gradients = penalty.backward();
    for (_, state) in model.adapter_states::<DiffPruned>("a").unwrap() {
        let alpha = state.alpha.unwrap().val();
        let slope: Tensor<1> = alpha.grad(&gradients).unwrap();
        assert!(slope.min().into_scalar::<f32>() > 0.0);
    }
}

/// Noise differs from step to step, and is the same in both passes of one.
#[test]
fn gates_are_drawn_anew_for_each_step() {
    let fixture = Fixture::new(&peft_core::device::cpu_devices().remove(0).1);
    let config = DiffPruningConfig::new()
        .with_targets(["query"])
        .with_alpha_init(0.0);
    let model = fixture.base.attach("a", &config).unwrap();
    let model = model
        .edit_adapter::<DiffPruned>("a", |_, state| {
            let diff = state.diff.take().unwrap().val();
            let some = Tensor::full(diff.shape(), 0.3, &diff.device());
            state.diff = Some(Param::from_tensor(some));
        })
        .unwrap();
    let loss = |model: &TinyTransformer| fixture.loss(model).into_scalar::<f32>();
    let first = loss(&model);
    assert!((loss(&model) - first).abs() < 1e-12, "one draw a step");
    let mut hooks = model.training_hooks(10).unwrap();
    let model = hooks.after_step(model).unwrap();
    assert!((loss(&model) - first).abs() > 1e-7, "another in the next");
}

#[test]
fn spt_gives_low_rank_to_weights_with_many_sensitive_elements() {
    let fixture = Fixture::new(&peft_core::device::cpu_devices().remove(0).1);
    let loss = |model: &TinyTransformer, ()| fixture.loss(model);
    let config = SptConfig::new().with_keep_ratio(0.1).with_targets([
        "query",
        "value",
        "intermediate.dense",
    ]);
    let attach = |config: &SptConfig| fixture.base.attach_on("a", config, [()], loss).unwrap();
    // Without low rank: how many are chosen of each weight.
    let sparse = attach(&config.clone().with_threshold(usize::MAX));
    let chosen = sparse.adapter_states::<SparseDelta>("a").unwrap();
    let total: usize = chosen.iter().map(|(_, state)| state.values.dims()[0]).sum();
    let elements = 2 * (2 * 32 * 32 + 32 * 64);
    assert_eq!(total, (f64::from(elements) * 0.1) as usize);
    let threshold = 2 * (32 + 32);
    let mixed = attach(&config.with_r(2));
    let low_rank = mixed.adapter_states::<LowRankChange>("a").unwrap();
    let rest = mixed.adapter_states::<SparseDelta>("a").unwrap();
    for (layer, state) in &chosen {
        let width = if layer.ends_with("intermediate.dense") {
            2 * (32 + 64)
        } else {
            threshold
        };
        let many = state.values.dims()[0] >= width;
        let in_low_rank = low_rank.iter().any(|(name, _)| name == layer);
        let in_rest = rest.iter().any(|(name, _)| name == layer);
        assert_eq!((in_low_rank, in_rest), (many, !many), "{layer}");
    }
    assert!(!low_rank.is_empty() && !rest.is_empty(), "both kinds");
    assert!(mixed.counts().adapter_trainable() <= total, "the budget");
}

#[test]
fn a_phase_without_steps_is_refused() {
    let fixture = Fixture::new(&peft_core::device::cpu_devices().remove(0).1);
    let cases: [(&dyn Method, &str); 3] = [
        (&LtSftConfig::new().with_dense_ratio(0.01), "dense_ratio"),
        (&FarConfig::new(), "priming_ratio"),
        (
            &DiffPruningConfig::new().with_fixed_ratio(0.99),
            "fixed_ratio",
        ),
    ];
    for (method, field) in cases {
        let model = fixture.base.attach("a", method).unwrap();
        let error = model.training_hooks(3).unwrap_err().to_string();
        assert!(
            error.contains(field) && error.contains("3 steps"),
            "{error}"
        );
    }
    for info in [&LT_SFT, &FAR, &DIFF_PRUNING] {
        assert!(info.identity_at_init && info.mergeable);
    }
    let states = fixture.base.attach("a", &FarConfig::new()).unwrap();
    let states = states.adapter_states::<DenseFirst>("a").unwrap();
    assert!(states.iter().all(|(_, state)| state.dense.is_some()));
}

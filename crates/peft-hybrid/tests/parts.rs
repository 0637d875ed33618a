//! In a training loop each method of a union works on its own states, also where two are of one type.

use burn::tensor::Tolerance;
use peft_additive::{Bottleneck, BottleneckConfig, Projection, Pruning};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::PeftModule;
use peft_core::method::Method;
use peft_core::state::AdapterState as _;
use peft_hybrid::{METHODS, UnionConfig};
use peft_reparameterization::{AdaLora, AdaLoraConfig};

fn fixture() -> Fixture {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    Fixture::new(&device)
}

fn train(fixture: &Fixture, model: TinyTransformer, steps: usize) -> TinyTransformer {
    let mut hooks = model.training_hooks(steps).unwrap();
    fixture.train_with_hooks(model, &mut hooks, steps, |_, _| ())
}

/// Of each place with a bottleneck: its block, and the share of Down's elements that are 0.
fn pruned(model: &TinyTransformer) -> Vec<(usize, f64)> {
    let states = model.adapter_states::<Bottleneck>("u").unwrap();
    let share = |(place, state): (String, Bottleneck)| {
        let Projection::Dense(down) = state.down else {
            panic!("dense")
        };
        let values: Vec<f32> = down.weight.val().into_data().iter().collect();
        let zeros = values.iter().filter(|value| **value == 0.0).count();
        let block = usize::from(place.contains("layer.1."));
        (block, zeros as f64 / values.len() as f64)
    };
    states.into_iter().map(share).collect()
}

#[test]
fn one_of_two_bottlenecks_is_pruned() {
    let fixture = fixture();
    let dense = BottleneckConfig::houlsby().with_reduction_factor(4.0);
    for pruning in [Pruning::Snip, Pruning::Magnitude] {
        let sparse = dense.clone().with_sparsity(0.75).with_pruning(pruning);
        let sparse = sparse.with_leave_out([1]);
        let union = UnionConfig::new()
            .with(dense.clone().with_leave_out([0]))
            .with(sparse);
        let model = fixture.base.attach("u", &union).unwrap();
        let model = train(&fixture, model, 2);
        let shares = pruned(&model);
        assert_eq!(shares.len(), 4, "{shares:?}");
        for (block, share) in shares {
            assert_eq!(share > 0.3, block == 0, "{pruning:?}: {share} in {block}");
            assert!(block == 0 || share == 0.0, "{pruning:?}: {share}");
        }
    }
}

/// The method that drops adapters would have none left in the last block, if it took the other's for its own.
#[test]
fn a_schedule_is_asked_for_with_its_own_states() {
    let fixture = fixture();
    let plain = BottleneckConfig::houlsby().with_reduction_factor(4.0);
    let drop = plain.clone().with_adapter_drop(1).with_leave_out([1]);
    let alone = fixture.base.attach("u", &drop).unwrap();
    let refused = alone.training_hooks(3).unwrap_err().to_string();
    let union = UnionConfig::new()
        .with(drop)
        .with(plain.with_leave_out([0]));
    let model = fixture.base.attach("u", &union).unwrap();
    assert_eq!(model.training_hooks(3).unwrap_err().to_string(), refused);
}

fn adalora(target: &str, left: usize) -> AdaLoraConfig {
    AdaLoraConfig::new(4, left)
        .with_targets([target])
        .with_phases(1, 2, 1)
}

fn ranks(model: &TinyTransformer, name: &str, target: &str) -> usize {
    let states = model.adapter_states::<AdaLora>(name).unwrap();
    let of_target = states.iter().filter(|(place, _)| place.contains(target));
    let kept = of_target.map(|(_, state)| match &state.kept {
        Some(kept) => kept.iter().filter(|kept| **kept).count(),
        None => state.rank(),
    });
    kept.sum()
}

#[test]
fn each_adalora_has_its_own_budget_and_writes_its_own_ranks() {
    let fixture = fixture();
    let union = UnionConfig::new()
        .with(adalora("query", 1))
        .with(adalora("value", 3));
    let model = train(&fixture, fixture.base.attach("u", &union).unwrap(), 7);
    // Two blocks.
    let found = [ranks(&model, "u", "query"), ranks(&model, "u", "value")];
    assert_eq!(found, [2, 6]);
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("u", dir.path()).unwrap();
    let json = peft_core::checkpoint::read_config(dir.path()).unwrap();
    for (part, target) in ["query", "value"].into_iter().enumerate() {
        let pattern = &json["config"]["configs"][part]["rank_pattern"];
        let pattern = pattern.as_object().expect("ranks");
        assert_eq!(pattern.len(), 2, "{pattern:?}");
        assert!(pattern.keys().all(|key| key.contains(target)));
    }
    let read = fixture.base.load_adapter("v", dir.path(), METHODS).unwrap();
    let [read, trained] = [&read, &model].map(|model| fixture.outputs(model).unwrap());
    // What was pruned is left out of the file's products.
    read.assert_approx_eq::<f32>(&trained, Tolerance::absolute(1e-5));
}

#[test]
fn penalties_are_those_of_the_methods_apart() {
    let fixture = fixture();
    let configs = [
        adalora("query", 1).with_orth_reg_weight(0.7),
        adalora("value", 3).with_orth_reg_weight(0.1),
    ];
    let [first, second] = configs.clone();
    let union = UnionConfig::new().with(first).with(second);
    let penalty = |model: &TinyTransformer| {
        let hooks = model.training_hooks(7).unwrap();
        let penalty = hooks.penalty(model).unwrap().expect("AdaLoRA's");
        penalty.into_scalar::<f32>()
    };
    let together = fixture.trained("u", &union).unwrap();
    let states = together.adapter_states::<AdaLora>("u").unwrap();
    let apart = configs.iter().map(|config: &AdaLoraConfig| {
        let config: &dyn Method = config;
        let model = fixture.base.attach("a", config).unwrap();
        let model = model.edit_adapter::<AdaLora>("a", |place, state| {
            let own = states.iter().find(|(of, _)| of == place).unwrap();
            *state = own.1.clone();
        });
        penalty(&model.unwrap())
    });
    let apart: f32 = apart.sum();
    let together = penalty(&together);
    assert!(
        (together - apart).abs() < 1e-5 * apart,
        "{together}, {apart}"
    );
}

//! Combined adapters against the dense changes that they stand for.

mod chance;
mod swapped;

use burn::module::Module;
use burn::tensor::{Device, Tensor, Tolerance};
use peft_conformance::TinyTransformer;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_reparameterization::{
    Bias, CombinationType, CombineError, LoraConfig, LoraEmbedding, LoraLinear, MergeMethod,
    TiesElectSign, add_weighted_adapter, extract_lora,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn device() -> Device {
    peft_core::device::cpu_devices()[0].1.clone()
}

fn base() -> TinyTransformer {
    TinyTransformer::new(&device())
}

/// An adapter whose factors are all random.
fn attached(model: &TinyTransformer, name: &str, config: &LoraConfig) -> TinyTransformer {
    let config = config.clone().with_init_lora_weights(false);
    model.attach(name, &config).unwrap()
}

type Changes = BTreeMap<String, Tensor<2>>;

fn changes(model: &TinyTransformer, name: &str) -> Changes {
    let linear = model.adapter_states::<LoraLinear>(name).unwrap();
    let tables = model.adapter_states::<LoraEmbedding>(name).unwrap();
    let linear = linear
        .into_iter()
        .map(|(layer, state)| (layer, state.delta()));
    let tables = tables
        .into_iter()
        .map(|(layer, state)| (layer, state.delta()));
    linear.chain(tables).collect()
}

fn weighted_sum(model: &TinyTransformer, adapters: &[(&str, f64)]) -> Changes {
    let mut sum = Changes::new();
    for (name, weight) in adapters {
        for (layer, change) in changes(model, name) {
            let change = change * *weight;
            let total = match sum.remove(&layer) {
                Some(total) => total + change,
                None => change,
            };
            sum.insert(layer, total);
        }
    }
    sum
}

/// Equal to 2e-5 of the largest: products of random factors are large, and `f32` rounds what they sum up to.
fn assert_near<const D: usize>(ours: Tensor<D>, theirs: Tensor<D>) {
    let largest: f32 = theirs.clone().abs().max().into_scalar();
    let tolerance = Tolerance::<f32>::absolute(2e-5 * largest.max(1.0));
    ours.into_data()
        .assert_approx_eq(&theirs.into_data(), tolerance);
}

fn assert_same(ours: &Changes, expected: &Changes) {
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (layer, change) in expected {
        let largest: f32 = change.clone().abs().max().into_scalar();
        let tolerance = Tolerance::<f32>::absolute(1e-4 * largest.max(1.0));
        ours[layer]
            .to_data()
            .assert_approx_eq(&change.to_data(), tolerance);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn side_by_side_and_by_singular_values_the_changes_add_up(
        ranks in [1_usize..5, 1_usize..5],
        alphas in [0.5_f64..20.0, 0.5_f64..20.0],
        weights in [-2.0_f64..2.0, -2.0_f64..2.0],
        rslora in any::<bool>(),
        pissa in any::<bool>(),
    ) {
        let first = LoraConfig::new(ranks[0])
            .with_alpha(alphas[0])
            .with_use_rslora(rslora)
            .with_targets(["query", "word_embeddings"]);
        let second = LoraConfig::new(ranks[1])
            .with_alpha(alphas[1])
            .with_targets(["query", "dense"])
            .with_rank_pattern("query", 3);
        let model = attached(&base(), "a", &first);
        let mut model = attached(&model, "b", &second);
        let mut names = vec![("a", weights[0]), ("b", weights[1])];
        if pissa {
            let config = LoraConfig::new(2).with_targets(["query"]).with_init_lora_weights("pissa");
            model = model.attach("p", &config).unwrap();
            model = model
                .edit_adapter::<LoraLinear>("p", |_, state| {
                    state.lora_b = state.lora_b.clone().map(|b| b * 1.1);
                })
                .unwrap();
            names.push(("p", 0.5));
        }
        let expected = weighted_sum(&model, &names);
        for how in [
            CombinationType::Cat,
            // No change has a higher rank than the sum of all.
            CombinationType::Svd(MergeMethod::Sum, Some(14)),
        ] {
            let combined = add_weighted_adapter(&model, "c", &names, how).unwrap();
            assert_same(&changes(&combined, "c"), &expected);
            // What is written is what was combined.
            let dir = tempfile::tempdir().unwrap();
            combined.save_adapter("c", dir.path()).unwrap();
            let read = base()
                .load_adapter("d", dir.path(), peft_reparameterization::METHODS)
                .unwrap();
            assert_same(&changes(&read, "d"), &expected);
        }
    }

    #[test]
    fn factors_are_combined_as_upstream_does(
        weights in [-2.0_f64..2.0, -2.0_f64..2.0],
        density in 0.2_f64..1.0,
        frequency in any::<bool>(),
    ) {
        let config = |alpha| LoraConfig::new(3).with_alpha(alpha).with_targets(["query"]);
        let model = attached(&base(), "a", &config(6.0));
        let model = attached(&model, "b", &config(1.5));
        let names = [("a", weights[0]), ("b", weights[1])];
        let sum = add_weighted_adapter(&model, "c", &names, CombinationType::Factors(MergeMethod::Sum)).unwrap();
        let of = |name| model.adapter_states::<LoraLinear>(name).unwrap();
        let sums = sum.adapter_states::<LoraLinear>("c").unwrap();
        for (((_, a), (_, b)), (_, c)) in of("a").into_iter().zip(of("b")).zip(sums) {
            let scaled = [weights[0] * 2.0, weights[1] * 0.5];
            let root = scaled.map(|s| s.abs().sqrt());
            let left = a.lora_a.val() * root[0].copysign(scaled[0])
                + b.lora_a.val() * root[1].copysign(scaled[1]);
            let right = a.lora_b.val() * root[0] + b.lora_b.val() * root[1];
            let expected = left.matmul(right);
            assert_near(c.delta(), expected);
        }
        let majority = if frequency { TiesElectSign::Frequency } else { TiesElectSign::Total };
        for rule in [
            MergeMethod::MagnitudePrune { density },
            MergeMethod::Ties { density, majority },
            MergeMethod::DareLinear { density },
            MergeMethod::DareTies { density, majority },
        ] {
            // Rules on changes: what upstream's formula makes of the dense ones.
            if let MergeMethod::MagnitudePrune { .. } | MergeMethod::Ties { .. } = rule {
                let how = CombinationType::Svd(rule, Some(32));
                let combined = add_weighted_adapter(&model, "c", &names, how).unwrap();
                let (a, b) = (changes(&model, "a"), changes(&model, "b"));
                let expected = a
                    .iter()
                    .map(|(layer, a)| {
                        let parts = [(a, weights[0]), (&b[layer], weights[1])];
                        (layer.clone(), dense(&parts, density, rule))
                    })
                    .collect();
                assert_same(&changes(&combined, "c"), &expected);
            }
            for how in [CombinationType::Factors(rule), CombinationType::Svd(rule, None)] {
                let combined = add_weighted_adapter(&model, "c", &names, how).unwrap();
                for change in changes(&combined, "c").values() {
                    let sum: f32 = change.clone().sum().into_scalar();
                    prop_assert!(sum.is_finite());
                }
            }
        }
    }
}

/// Pruning by size and, for TIES, electing, written with tensors.
fn dense(parts: &[(&Tensor<2>, f64)], density: f64, rule: MergeMethod) -> Tensor<2> {
    let pruned: Vec<(Tensor<2>, f64)> = parts
        .iter()
        .map(|&(change, weight)| {
            let sizes = change.clone().abs().flatten::<1>(0, 1);
            let kept = (density * sizes.dims()[0] as f64) as usize;
            let mask = if kept == 0 {
                change.zeros_like()
            } else {
                let least: f32 = sizes
                    .sort_descending(0)
                    .narrow(0, kept - 1, 1)
                    .into_scalar();
                change.clone().abs().greater_equal_elem(least).float()
            };
            (change.clone() * mask, weight)
        })
        .collect();
    let add = |sum: Tensor<2>, next: Tensor<2>| sum + next;
    let MergeMethod::Ties { majority, .. } = rule else {
        let weighted = pruned.into_iter().map(|(change, weight)| change * weight);
        return weighted.reduce(add).unwrap();
    };
    let votes = pruned.iter().map(|(change, _)| match majority {
        TiesElectSign::Total => change.clone(),
        TiesElectSign::Frequency => change.clone().sign(),
    });
    let sum = votes.reduce(add).unwrap();
    let wanted = sum.clone().greater_equal_elem(0.0).float() * 2.0 - 1.0;
    let agree = |change: &Tensor<2>| change.clone().sign().equal(wanted.clone()).float();
    let count = pruned.iter().map(|(change, _)| agree(change)).reduce(add);
    let kept = pruned
        .iter()
        .map(|(change, weight)| change.clone() * agree(change) * *weight);
    kept.reduce(add).unwrap() / count.unwrap().clamp_min(1.0)
}

#[test]
fn biases_are_combined_too() {
    let both = LoraConfig::new(2).with_targets(["query"]);
    let model = base()
        .attach("a", &both.clone().with_bias(Bias::All))
        .unwrap();
    let model = model
        .attach("b", &both.clone().with_bias(Bias::Adapted))
        .unwrap();
    // Random biases.
    let mut model = model.attach("c", &both.with_lora_bias(true)).unwrap();
    for name in ["a", "b"] {
        let states = model
            .adapter_states::<peft_core::method::TrainedBias>(name)
            .unwrap();
        assert!(!states.is_empty());
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(name, dir.path()).unwrap();
        let file = dir.path().join("adapter_model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let changed: Vec<(String, Vec<u8>, Vec<usize>)> = tensors
            .iter()
            .map(|(key, view)| {
                let values = view.data().chunks(4).enumerate().flat_map(|(i, bytes)| {
                    let value = f32::from_le_bytes(bytes.try_into().unwrap());
                    let more = if key.ends_with("bias") {
                        (i as f32).sin()
                    } else {
                        0.0
                    };
                    (value + more).to_le_bytes()
                });
                (key.to_string(), values.collect(), view.shape().to_vec())
            })
            .collect();
        let views = changed.iter().map(|(key, data, shape)| {
            let dtype = safetensors::Dtype::F32;
            let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), data);
            (key.clone(), view.unwrap())
        });
        safetensors::serialize_to_file(views, None, &file).unwrap();
        model = model.detach(name).unwrap();
        model = model
            .load_adapter(name, dir.path(), peft_reparameterization::METHODS)
            .unwrap();
    }
    model = model
        .edit_adapter::<peft_reparameterization::LoraBias>("c", |_, state| {
            state.lora_b = state.lora_b.clone().map(|b| b + 0.3);
        })
        .unwrap();
    let names = [("a", 0.5), ("b", -1.0), ("c", 2.0)];
    let combined = add_weighted_adapter(&model, "d", &names[..2], CombinationType::Cat).unwrap();
    let merged = |model: &TinyTransformer, name: &str| {
        let model = model.activate(&[name]).unwrap();
        model.merge_and_unload().unwrap()
    };
    let plain = base();
    let parts: Vec<(TinyTransformer, f64)> = names[..2]
        .iter()
        .map(|(name, weight)| (merged(&model, name), *weight))
        .collect();
    let whole = merged(&combined, "d");
    let of = |model: &TinyTransformer| -> BTreeMap<String, Vec<f32>> {
        let params = model.layout().params.into_iter();
        let biases = params.filter(|param| param.name.ends_with("bias"));
        biases
            .map(|param| {
                (
                    param.name.clone(),
                    param.value::<1>().to_data().iter().collect(),
                )
            })
            .collect()
    };
    let (before, after) = (of(&plain), of(&whole));
    let parts: Vec<_> = parts
        .iter()
        .map(|(model, weight)| (of(model), *weight))
        .collect();
    for (name, values) in &before {
        for (i, value) in values.iter().enumerate() {
            let change: f64 = parts
                .iter()
                .map(|(part, weight)| f64::from(part[name][i] - value) * weight)
                .sum();
            let off = f64::from(after[name][i] - value) - change;
            assert!(off.abs() < 1e-5, "{name}: {off}");
        }
    }
    // A bias of B and trained biases are two things on one parameter.
    let refused = add_weighted_adapter(&model, "e", &names, CombinationType::Cat).unwrap_err();
    assert!(refused.to_string().contains("lora_bias"), "{refused}");
    let only = add_weighted_adapter(&model, "e", &names[2..], CombinationType::Cat).unwrap();
    let (c, e) = (of(&merged(&model, "c")), of(&merged(&only, "e")));
    for (name, values) in &before {
        for (i, value) in values.iter().enumerate() {
            let off = (e[name][i] - value) - 2.0 * (c[name][i] - value);
            assert!(off.abs() < 1e-5, "{name}: {off}");
        }
    }
}

#[test]
fn what_has_no_meaning_is_refused() {
    let config = LoraConfig::new(2).with_targets(["query"]);
    let model = base().attach("a", &config).unwrap();
    let model = model
        .attach("wide", &LoraConfig::new(4).with_targets(["query"]))
        .unwrap();
    let model = model
        .attach("dora", &config.clone().with_use_dora(true))
        .unwrap();
    let model = model
        .attach("pissa", &config.clone().with_init_lora_weights("pissa"))
        .unwrap();
    let model = model
        .attach("head", &config.with_modules_to_save(["classifier"]))
        .unwrap();
    let refused = |adapters: &[(&str, f64)], how| {
        add_weighted_adapter(&model, "new", adapters, how)
            .unwrap_err()
            .to_string()
    };
    let nothing = add_weighted_adapter(&model, "new", &[], CombinationType::Cat);
    assert!(matches!(nothing, Err(Error::Method(error)) if error.is::<CombineError>()));
    let sum = CombinationType::Factors(MergeMethod::Sum);
    assert!(refused(&[("a", 1.0), ("wide", 1.0)], sum).contains("rank is 4"));
    assert!(refused(&[("a", 1.0), ("pissa", 1.0)], sum).contains("PiSSA"));
    assert!(refused(&[("a", 1.0), ("dora", 1.0)], CombinationType::Cat).contains("DoRA"));
    assert!(refused(&[("head", 1.0)], CombinationType::Cat).contains("whole"));
    assert!(refused(&[("b", 1.0)], CombinationType::Cat).contains("`b`"));
    assert!(refused(&[], CombinationType::Cat).contains("nothing"));
    assert!(refused(&[("a", f64::NAN)], CombinationType::Cat).contains("finite"));
    let ties = MergeMethod::Ties {
        density: 0.0,
        majority: TiesElectSign::Total,
    };
    assert!(refused(&[("a", 1.0)], CombinationType::Svd(ties, None)).contains("density"));
    assert_eq!(model.adapters().len(), 5);
}

#[test]
fn a_difference_of_low_rank_is_extracted() {
    let config = LoraConfig::new(3).with_targets(["query", "word_embeddings"]);
    let tuned = attached(&base(), "a", &config).merge_and_unload().unwrap();
    let targets = ["query", "word_embeddings"];
    let (model, report) = extract_lora(&base(), &tuned, "x", 3, targets).unwrap();
    assert!(report.iter().all(|layer| layer.error < 1e-3), "{report:?}");
    let again = model.merge_and_unload().unwrap();
    for (ours, theirs) in again.layout().params.iter().zip(&tuned.layout().params) {
        if ours.shape().len() == 2 {
            assert_near(ours.value::<2>(), theirs.value::<2>());
        }
    }
    // With less rank something is missed, and the report says how much.
    let (model, report) = extract_lora(&base(), &tuned, "x", 1, ["query"]).unwrap();
    for layer in &report {
        let delta = model.adapter_states::<LoraLinear>("x").unwrap();
        let (_, state) = delta.iter().find(|(name, _)| *name == layer.layer).unwrap();
        let name = format!("{}.weight", layer.layer);
        let of = |model: &TinyTransformer| {
            let layout = model.layout();
            let param = layout.params.iter().find(|param| param.name == name);
            param.unwrap().value::<2>()
        };
        let change = of(&tuned) - of(&base());
        let norm = |tensor: Tensor<2>| -> f32 { tensor.powi_scalar(2).sum().sqrt().into_scalar() };
        let share = norm(change.clone() - state.delta()) / norm(change);
        assert!((f64::from(share) - layer.error).abs() < 1e-3, "{share}");
        assert!(layer.error > 0.05);
    }
}

#[test]
fn pissa_and_olora_begin_as_the_base_and_dora_has_its_norms() {
    let base = base();
    for config in [
        LoraConfig::new(4).with_init_lora_weights("pissa"),
        LoraConfig::new(4)
            .with_init_lora_weights("pissa_niter_4")
            .with_alpha(3.0),
        LoraConfig::new(4)
            .with_init_lora_weights("olora")
            .with_alpha(2.0),
        LoraConfig::new(4).with_init_lora_weights("orthogonal"),
        LoraConfig::new(4).with_use_dora(true),
        LoraConfig::new(4)
            .with_use_dora(true)
            .with_init_lora_weights("pissa"),
    ] {
        let model = base.attach("a", &config).unwrap();
        let merged = model.merge_and_unload().unwrap();
        for (ours, theirs) in merged.layout().params.iter().zip(&base.layout().params) {
            if ours.shape().len() == 2 {
                assert_near(ours.value::<2>(), theirs.value::<2>());
            }
        }
        let states = model.adapter_states::<LoraLinear>("a").unwrap();
        let size: f32 = states[0].1.lora_a.val().abs().mean().into_scalar();
        assert!(size > 1e-3, "{config:?}");
        let trained = model.clone().train().counts().trainable;
        let expected: usize = states
            .iter()
            .map(|(_, state)| {
                let [d_in, r] = state.lora_a.dims();
                let out = state.lora_b.dims()[1];
                r * (d_in + out) + if config.use_dora { out } else { 0 }
            })
            .sum();
        assert_eq!(trained, expected);
    }
}

#[test]
fn contradictions_are_refused() {
    use peft_reparameterization::TrainableTokenIndices;
    let refused = |config: &LoraConfig| base().attach("a", config).unwrap_err().to_string();
    let config = LoraConfig::new(2).with_targets(["query"]);
    let mut twice = config.clone();
    let tables = [("word_embeddings", 1), ("embeddings.word_embeddings", 2)];
    let tables = tables.map(|(name, row)| (name.to_string(), vec![row]));
    twice.trainable_token_indices = Some(TrainableTokenIndices::ByTable(tables.into()));
    assert!(refused(&twice).contains("one list"));
    assert!(refused(&config.clone().with_trainable_token_indices([97])).contains("below 97"));
    assert!(refused(&config.clone().with_trainable_token_indices([3, 3])).contains("different"));
    let targeted = LoraConfig::new(2).with_targets(["word_embeddings"]);
    assert!(refused(&targeted.with_trainable_token_indices([3])).contains("target"));
    let negative = config
        .with_init_lora_weights("pissa")
        .with_alpha_pattern("query", -1.0);
    assert!(refused(&negative).contains("above 0"));
}

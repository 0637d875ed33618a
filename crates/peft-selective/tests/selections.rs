//! `LayerNorm` tuning, trainable tokens and `SHiRA`: what they choose, and what they refuse.

use burn::tensor::{Bool, Device, Tensor};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::calibration::{Calibrate as _, CalibrationConfig};
use peft_core::method::Method;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_selective::{
    LnTuningConfig, MaskFn, ShiraConfig, SparseDelta, TrainableTokensConfig, largest,
};

fn device() -> Device {
    peft_core::device::cpu_devices().remove(0).1
}

fn refused(base: &TinyTransformer, method: &dyn Method, words: &[&str]) {
    let error = base
        .attach("a", method)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn is_same(old: f32, new: f32) -> bool {
    old.to_bits() == new.to_bits()
}

/// Weight of the query of the first layer.
fn query(model: &TinyTransformer) -> Tensor<2> {
    model.encoder.layer[0]
        .attention
        .self_attention
        .query
        .weight
        .val()
}

/// The sparse state on it.
fn state(model: &TinyTransformer) -> SparseDelta {
    let states = model.adapter_states::<SparseDelta>("a").unwrap();
    let is_query =
        |(name, _): &(String, SparseDelta)| name.contains("layer.0") && name.contains("query");
    states
        .into_iter()
        .find(is_query)
        .expect("a state on the query")
        .1
}

#[test]
fn norms_alone_are_tuned_and_other_layers_are_refused_by_name() {
    let base = Fixture::new(&device()).base;
    let model = base.attach("a", &LnTuningConfig::new()).unwrap();
    // One norm of the embeddings, two a layer.
    assert_eq!(model.counts().trainable, 5 * 2 * 32);
    let query = LnTuningConfig::new().with_targets(["LayerNorm", "query"]);
    refused(&base, &query, &["attention.self.query", "Linear", "Norm"]);
}

#[test]
fn rows_that_are_not_there_or_there_twice_are_refused() {
    let base = Fixture::new(&device()).base;
    let tokens = |rows: &[usize]| TrainableTokensConfig::new(rows);
    refused(&base, &tokens(&[]), &["token_indices", "at least one"]);
    refused(&base, &tokens(&[5, 3, 5]), &["token_indices", "each once"]);
    refused(
        &base,
        &tokens(&[5, 97]),
        &["token_indices", "below 97", "word_embeddings"],
    );
    let query = tokens(&[5]).with_targets(["query"]);
    refused(&base, &query, &["attention.self.query", "Embedding"]);
    let head = tokens(&[5]).with_targets(["lm_head"]);
    refused(&base, &head, &["lm_head", "Embedding"]);
    let both = tokens(&[5]).with_targets(["lm_head", "word_embeddings"]);
    assert_eq!(base.attach("a", &both).unwrap().counts().trainable, 32);
}

#[test]
fn only_the_chosen_rows_change_and_a_tied_head_follows() {
    for (name, device) in peft_core::device::cpu_devices() {
        let fixture = Fixture::new(&device);
        // A label of the head, which no text of the batch has to contain.
        let config = TrainableTokensConfig::new([50, 3]);
        let model = fixture.trained("a", &config).unwrap();
        let table = |model: &TinyTransformer| values(model.embeddings.word_embeddings.weight.val());
        let (before, after) = (table(&fixture.base), table(&model));
        for (row, (old, new)) in before.chunks(32).zip(after.chunks(32)).enumerate() {
            let same = old.iter().zip(new).all(|(old, new)| is_same(*old, *new));
            assert_eq!(same, ![50, 3].contains(&row), "{name}: row {row}");
        }
        let merged = model.merge_and_unload().unwrap();
        assert_eq!(table(&merged), after, "{name}");
        let far = peft_conformance::farthest(
            &fixture.outputs(&merged).unwrap(),
            &fixture.outputs(&model).unwrap(),
        );
        assert!(far < 1e-5, "{name}: {far}");
    }
}

#[test]
fn a_random_mask_has_as_many_different_places_as_lora_has_numbers() {
    let base = Fixture::new(&device()).base;
    let config = ShiraConfig::new(3)
        .with_targets(["query"])
        .with_random_seed(7);
    let places = || {
        let state = state(&base.attach("a", &config).unwrap());
        let indices: Vec<i64> = state.indices.val().into_data().iter().collect();
        let (outputs, inputs) = indices.split_at(indices.len() / 2);
        outputs
            .iter()
            .zip(inputs)
            .map(|(o, i)| (*o, *i))
            .collect::<Vec<_>>()
    };
    let drawn = places();
    let mut sorted = drawn.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), 3 * (32 + 32));
    assert_eq!(places(), drawn, "a seed repeats the mask");
    refused(
        &base,
        &ShiraConfig::new(17).with_targets(["query"]),
        &["`r`", "at most 16", "query"],
    );
}

#[test]
fn what_is_outside_of_the_mask_stays_bit_equal_while_training() {
    for (name, device) in peft_core::device::cpu_devices() {
        let fixture = Fixture::new(&device);
        let config = ShiraConfig::new(2)
            .with_targets(["query"])
            .with_mask_type("magnitude")
            .with_mask_fn(MaskFn::magnitude());
        let model = fixture.base.attach("a", &config).unwrap();
        let (model, _) = fixture.train(model, 5, 1e-2);
        let (before, after) = (values(query(&fixture.base)), values(query(&model)));
        let mut magnitudes: Vec<f32> = before.iter().map(|value| value.abs()).collect();
        magnitudes.sort_by(f32::total_cmp);
        let least = magnitudes[magnitudes.len() - 2 * (32 + 32)];
        for (old, new) in before.iter().zip(&after) {
            // Of those that may change nearly all do; of the others none.
            assert!(old.abs() >= least || is_same(*old, *new), "{name}");
        }
        let changed = before
            .iter()
            .zip(&after)
            .filter(|(old, new)| !is_same(**old, **new))
            .count();
        assert_eq!(changed, 2 * (32 + 32), "{name}");
    }
}

#[test]
fn masks_by_gradients_are_those_of_the_users_data() {
    let fixture = Fixture::new(&device());
    let wanted = CalibrationConfig {
        squared_gradients: true,
        ..CalibrationConfig::new(["query"])
    };
    let mut calibrator = fixture.base.calibrate(&wanted).unwrap();
    let gradients = fixture.loss(calibrator.model()).backward();
    let gradient = query(&fixture.base).grad(&gradients).unwrap().abs();
    calibrator.record_gradients(&gradients).unwrap();
    let calibration = calibrator.finish().unwrap();
    let weight = Tensor::<2>::from_data(query(&fixture.base).into_data(), &device()).abs();
    let cases: [(MaskFn, Tensor<2>); 2] = [
        (MaskFn::gradient(), gradient.clone()),
        (MaskFn::snip(), gradient * weight),
    ];
    for (choose, scores) in cases {
        let config = ShiraConfig::new(1)
            .with_targets(["query"])
            .with_mask_type("mine")
            .with_mask_fn(choose);
        refused(&fixture.base, &config, &["mask_fn", "attach_with"]);
        let model = fixture
            .base
            .attach_with("a", &config, &calibration)
            .unwrap();
        let chosen: Vec<i64> = state(&model).indices.val().into_data().iter().collect();
        let (outputs, inputs) = chosen.split_at(64);
        let mask: Vec<bool> = largest(scores, 64).into_data().iter::<bool>().collect();
        for (output, input) in outputs.iter().zip(inputs) {
            assert!(mask[(input * 32 + output) as usize]);
        }
    }
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let base = Fixture::new(&device()).base;
    let with = |choose: fn(&Tensor<2>) -> Tensor<2, Bool>| {
        ShiraConfig::new(1)
            .with_targets(["query"])
            .with_mask_type("mine")
            .with_mask_fn(MaskFn::new(move |context| Ok(choose(&context.weight))))
    };
    let few = with(|weight| largest(weight.clone(), 63));
    refused(
        &base,
        &few,
        &["mask_fn", "63 elements", "64 elements", "query.weight"],
    );
    let small = with(|weight| largest(weight.clone().narrow(0, 0, 16), 64));
    refused(&base, &small, &["mask_fn", "[16, 32]", "[32, 32]"]);
    let nameless = ShiraConfig::new(1).with_mask_fn(MaskFn::magnitude());
    refused(&base, &nameless, &["mask_type", "random"]);
    let without = ShiraConfig::new(1).with_mask_type("mine");
    refused(&base, &without, &["mask_type", "mine"]);
    let error = base.attach("a", &without).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Config { .. }), "{error}");
}

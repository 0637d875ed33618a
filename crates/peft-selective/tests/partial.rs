//! Partial fine-tuning: which parameters train, that their gradients are full fine-tuning's, and what is refused.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::PeftModule;
use peft_core::device::cpu_devices;
use peft_core::method::Method;
use peft_selective::{FullConfig, Part, PartialConfig};

/// The gradients of a model's trained parameters, by the field paths of the base's.
struct Trained<'a> {
    gradients: &'a Gradients,
    path: Vec<String>,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Trained<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.base().grad(self.gradients) {
            let path = self.path.join(".").replace(".peft.a.value", "");
            let values = gradient.into_data().iter::<f32>().collect();
            self.found.insert(path, values);
        }
    }
}

fn gradients(fixture: &Fixture, model: &TinyTransformer) -> BTreeMap<String, Vec<f32>> {
    let gradients = fixture.loss(model).backward();
    let mut found = Trained {
        gradients: &gradients,
        path: Vec::new(),
        found: BTreeMap::new(),
    };
    model.visit(&mut found);
    found.found
}

fn names(model: &TinyTransformer) -> Vec<String> {
    gradients(&Fixture::new(&cpu_devices()[0].1), model)
        .into_keys()
        .collect()
}

#[test]
fn gradients_are_those_of_full_fine_tuning() {
    let cases = [
        PartialConfig::new(),
        PartialConfig::last(1),
        PartialConfig::first(1),
        PartialConfig::attention(),
        PartialConfig::embeddings(),
        PartialConfig::new().with_parts([Part::FeedForward, Part::Norms]),
    ];
    for (name, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        let full = fixture.base.attach("full", &FullConfig::new()).unwrap();
        let full = gradients(&fixture, &full);
        for config in &cases {
            for in_place in [false, true] {
                let config = config.clone().with_in_place(in_place);
                let model = fixture.base.attach("a", &config).unwrap();
                let found = gradients(&fixture, &model);
                assert!(!found.is_empty() && found.len() < full.len(), "{config:?}");
                for (path, values) in &found {
                    let expected = &full[path];
                    let scale = expected.iter().fold(1e-3_f32, |most, x| most.max(x.abs()));
                    let far = farthest(values, expected);
                    assert!(far < 1e-5 * scale, "{name}, {config:?}, {path}: {far}");
                }
            }
        }
    }
}

/// The largest difference; infinite for NaN.
fn farthest(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    let differences = one
        .iter()
        .zip(other)
        .map(|(one, other)| (one - other).abs());
    differences.fold(0.0, |most, next| if next <= most { most } else { next })
}

#[test]
fn the_parameters_that_are_asked_for_train_and_no_others() {
    let base = Fixture::new(&cpu_devices()[0].1).base;
    let trained = |config: PartialConfig| names(&base.attach("a", &config).unwrap());
    let is_below =
        |names: &[String], folder: &str| names.iter().all(|name| name.starts_with(folder));

    let last = trained(PartialConfig::last(1));
    assert_eq!(last.len(), 16, "{last:?}");
    assert!(is_below(&last, "encoder.layer.1."), "{last:?}");
    let first = trained(PartialConfig::first(1));
    assert!(first.len() == 16 && is_below(&first, "encoder.layer.0."));
    let both = trained(PartialConfig::first(1).with_last_layers(1));
    assert_eq!(both.len(), 32);
    assert_eq!(trained(PartialConfig::last(2)), both);

    let attention = trained(PartialConfig::attention());
    assert_eq!(attention.len(), 2 * 4 * 2, "{attention:?}");
    let top = trained(PartialConfig::last(1).with_parts([Part::Attention]));
    assert!(top.len() == 8 && is_below(&top, "encoder.layer.1.attention."));
    let tables = trained(PartialConfig::embeddings());
    assert_eq!(tables.len(), 2, "{tables:?}");
    let biases = trained(PartialConfig::new().with_parts([Part::Biases]));
    assert_eq!(biases.len(), 2 * (6 + 2) + 2, "{biases:?}");

    let all = trained(PartialConfig::new());
    assert!(all.iter().all(|name| !name.starts_with("classifier")));
    let head = trained(PartialConfig::new().with_targets(["classifier"]));
    assert_eq!(head, ["classifier.bias", "classifier.weight"]);
    let head = PartialConfig::last(1).with_modules_to_save(["classifier"]);
    let counts = base.attach("a", &head).unwrap().counts();
    assert_eq!(
        counts.saved_modules,
        32 * 2 + 2,
        "the head is counted apart"
    );
    assert_eq!(counts.changed, counts.adapter_trainable());
}

#[test]
fn a_head_that_is_the_table_follows_the_trained_table() {
    for (name, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        for targets in ["word_embeddings", "lm_head"] {
            let config = PartialConfig::new().with_targets([targets]);
            let model = fixture.trained("a", &config).unwrap();
            assert_eq!(model.counts().adapter_trainable(), 97 * 32, "{targets}");
            assert_eq!(model.counts().stored, 97 * 32, "{targets}");
            let merged = model.merge_and_unload().unwrap();
            let far = peft_conformance::farthest(
                &fixture.outputs(&merged).unwrap(),
                &fixture.outputs(&model).unwrap(),
            );
            assert!(far < 1e-5, "{name}, {targets}: {far}");
        }
    }
}

#[test]
fn in_place_and_as_copies_the_same_is_learned_and_nothing_else_changes() {
    for (name, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        let train = |in_place| {
            let config = PartialConfig::last(1).with_in_place(in_place);
            let model = fixture.base.attach("a", &config).unwrap();
            fixture.train(model, 5, 1e-3).0
        };
        let (copies, in_place) = (train(false), train(true));
        assert_eq!(in_place.adapters(), Vec::<String>::new());
        assert_eq!(copies.num_params(), in_place.num_params() + 8544, "{name}");
        let merged = copies.merge_and_unload().unwrap();
        let values = |model: &TinyTransformer| -> BTreeMap<String, Vec<u32>> {
            let params = model.layout().params.into_iter();
            let params = params.filter(|param| !param.is_tied());
            params
                .map(|param| (param.name.clone(), bits(&param)))
                .collect()
        };
        let (base, merged) = (values(&fixture.base), values(&merged));
        for (param, value) in values(&in_place) {
            let same = value == base[&param];
            assert_eq!(
                same,
                !param.starts_with("encoder.layer.1."),
                "{name}: {param}"
            );
            let far = |bits: &[u32]| {
                bits.iter()
                    .map(|bits| f32::from_bits(*bits))
                    .collect::<Vec<_>>()
            };
            let far = farthest(&far(&value), &far(&merged[&param]));
            assert!(far < 1e-5, "{name}, {param}: {far}");
        }
    }
}

/// The bits of a parameter's values.
fn bits(param: &peft_core::method::LayoutParam) -> Vec<u32> {
    let data = match param.shape().len() {
        1 => param.value::<1>().into_data(),
        2 => param.value::<2>().into_data(),
        4 => param.value::<4>().into_data(),
        rank => panic!("the model has no parameter of rank {rank}"),
    };
    data.iter::<f32>().map(f32::to_bits).collect()
}

#[test]
fn what_the_model_has_not_is_refused() {
    let base = Fixture::new(&cpu_devices()[0].1).base;
    let refused = |config: PartialConfig, words: &[&str]| {
        let method: &dyn Method = &config;
        let error = base
            .attach("a", method)
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(PartialConfig::last(3), &["last_layers", "3", "at most 2"]);
    refused(
        PartialConfig::first(0),
        &["first_layers", "0", "at least 1"],
    );
    // Tables are in no block.
    let tables = PartialConfig::last(1).with_parts([Part::Embeddings]);
    refused(
        tables,
        &["parts", "Embeddings", "selected layers and blocks"],
    );
    let one_of_two = PartialConfig::attention()
        .with_parts([Part::Attention, Part::Norms])
        .with_targets(["query"]);
    refused(one_of_two, &["parts", "Norms"]);
    refused(
        PartialConfig::new().with_parts([]),
        &["parts", "one at least"],
    );
    let outside = PartialConfig::last(1).with_targets(["word_embeddings"]);
    refused(outside, &["target_modules", "word_embeddings"]);
}

//! The mean of several adapters, as a new one.

use std::collections::BTreeMap;

use burn::module::Module as _;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::additive::{AdapterFusionConfig, BottleneckConfig, Ia3Config};
use peft::core::method::Method;
use peft::core::state::AdapterState as _;
use peft::core::{Composition, Error, PeftModule, device::cpu_devices};
use peft::reparameterization::{LoraConfig, VeraConfig};
use peft::selective::BitFitConfig;
use peft::soft_prompt::{PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig};
use peft_conformance::{farthest, perturb};
use peft_models::{BertClassifier, BertConfig, Pooling};

fn bert(device: &Device) -> BertClassifier {
    device.seed(5);
    let base = BertConfig::tiny().init(device);
    BertClassifier::new_head(base, 2, Pooling::Mean, 0.0, device).unwrap()
}

fn with(model: &BertClassifier, method: &dyn Method, names: &[&str]) -> BertClassifier {
    names.iter().fold(model.clone(), |model, name| {
        perturb(model.attach(name, method).unwrap(), name)
    })
}

fn output(model: &BertClassifier, device: &Device) -> TensorData {
    let ids = Tensor::<2, Int>::from_data([[5_i64, 9, 2, 7], [1, 8, 30, 4]], device);
    model.forward(ids, None).into_data()
}

/// The share of each tensor that differs from the weighted mean of those of the adapters.
fn off(found: &BTreeMap<String, TensorData>, parts: &[(BTreeMap<String, TensorData>, f64)]) -> f64 {
    let mut worst: f64 = 0.0;
    for (key, data) in found {
        for (at, value) in data.iter::<f64>().enumerate() {
            let value_of = |tensors: &BTreeMap<String, TensorData>| {
                tensors[key].iter::<f64>().nth(at).unwrap()
            };
            let mean: f64 = parts
                .iter()
                .map(|(tensors, weight)| weight * value_of(tensors))
                .sum();
            worst = worst.max((mean - value).abs());
        }
    }
    worst
}

#[test]
fn every_tensor_is_the_mean() {
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    let base = bert(&device);
    let methods: [&dyn Method; 7] = [
        &BottleneckConfig::houlsby().with_modules_to_save(["classifier"]),
        &Ia3Config::new().with_targets(["key", "value"]),
        &LoraConfig::new(3).with_targets(["query", "dense"]),
        &VeraConfig::new(8).with_targets(["query"]),
        &BitFitConfig::new(),
        &PrefixTuningConfig::new(3),
        &PromptTuningConfig::new(4),
    ];
    for method in methods {
        let model = with(&base, method, &["a", "b", "c"]);
        let mean = model
            .average_adapters("mean", &[("a", 1.0), ("c", 3.0)])
            .unwrap();
        let tensors = |name: &str| mean.adapter_tensors(name).unwrap();
        let keys: Vec<String> = tensors("mean").into_keys().collect();
        assert_eq!(keys, tensors("a").into_keys().collect::<Vec<_>>());
        let parts = [(tensors("a"), 0.25), (tensors("c"), 0.75)];
        let distance = off(&tensors("mean"), &parts);
        assert!(distance < 1e-6, "{method:?}: {distance}");
        // It acts, and is trained by itself: the others are not touched.
        assert_eq!(mean.composition(), Composition::Stack(vec!["mean".into()]));
        let alone = mean.detach("a").unwrap();
        assert_eq!(output(&alone, &device), output(&mean, &device));
        assert_ne!(output(&model, &device), output(&mean, &device));
        let again = mean.activate(&["c"]).unwrap();
        assert_eq!(output(&model, &device), output(&again, &device));
        let own = mean.counts().trainable;
        assert_eq!(own, model.counts().trainable);
    }
}

#[test]
fn the_mean_of_encoders_is_that_of_what_they_compute() {
    let (_, device) = cpu_devices().remove(0);
    let base = bert(&device.clone().autodiff());
    let model = with(&base, &PromptEncoderConfig::new(3), &["a", "b"]);
    let mean = model
        .average_adapters("mean", &[("a", 1.0), ("b", 1.0)])
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let stored = |name: &str| {
        let path = dir.path().join(name);
        mean.save_adapter(name, &path).unwrap();
        let again = base.load_adapter("x", path, &peft::methods()).unwrap();
        again.adapter_tensors("x").unwrap()
    };
    let parts = [(stored("a"), 0.5), (stored("b"), 0.5)];
    assert!(off(&stored("mean"), &parts) < 1e-6);
}

/// Only dropout, targets and what is for the reader may differ.
#[test]
fn the_mean_of_one_adapter_is_it() {
    let (_, device) = cpu_devices().remove(0);
    let base = bert(&device);
    let lora = LoraConfig::new(2).with_targets(["query", "value"]);
    let model = with(&base.train(), &lora, &["a"]);
    let other = lora
        .clone()
        .with_lora_dropout(0.5)
        .with_targets(["value", "query"]);
    let model = model.attach("b", &other).unwrap();
    let model = model
        .with_adapter_tensors("b", model.adapter_tensors("a").unwrap())
        .unwrap();
    for weights in [&[("a", 2.0)][..], &[("a", 1.0), ("b", 3.0)]] {
        let mean = model.average_adapters("mean", weights).unwrap();
        let expected = output(&model.activate(&["a"]).unwrap().valid(), &device);
        assert!(farthest(&output(&mean.valid(), &device), &expected) < 1e-6);
    }
}

#[test]
fn what_has_no_mean_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let base = bert(&device);
    let lora = LoraConfig::new(2).with_targets(["query"]);
    let model = with(&base, &lora, &["a", "b"]);
    let scaled = lora.clone().with_alpha(4.0);
    let model = with(&model, &scaled, &["scaled"]);
    let model = with(
        &model,
        &LoraConfig::new(2).with_targets(["value"]),
        &["elsewhere"],
    );
    let model = with(&model, &Ia3Config::new().with_targets(["key"]), &["ia3"]);
    let refusals: [(&[(&str, f64)], &str); 7] = [
        (&[], "at least one"),
        (&[("a", 1.0), ("b", -1.0)], "sum is not 0"),
        (&[("a", f64::NAN)], "sum is not 0"),
        (
            &[("a", 1.0), ("scaled", 1.0)],
            "`lora_alpha` is 8.0 there and 4.0 here",
        ),
        (
            &[("a", 1.0), ("elsewhere", 1.0)],
            "do not both have a tensor",
        ),
        (&[("a", 1.0), ("ia3", 1.0)], "one is LoRA, the other IA3"),
        (&[("a", 1.0), ("nobody", 1.0)], "no adapter named `nobody`"),
    ];
    for (weights, expected) in refusals {
        let error = model
            .average_adapters("mean", weights)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    let taken = model.average_adapters("b", &[("a", 1.0)]).unwrap_err();
    assert!(matches!(taken, Error::AlreadyAttached { .. }), "{taken}");
}

/// A fusion is of adapters by name, and its keys have a name, too.
#[test]
fn fusions_have_a_mean() {
    let (_, device) = cpu_devices().remove(0);
    let base = bert(&device.clone().autodiff());
    let model = with(&base, &BottleneckConfig::pfeiffer(), &["a", "b"]);
    let model = with(
        &model,
        &AdapterFusionConfig::dynamic(["a", "b"]),
        &["f", "g"],
    );
    let mean = model
        .average_adapters("mean", &[("f", 1.0), ("g", 1.0)])
        .unwrap();
    // AdapterFusion's keys name the adapter.
    let tensors = |name: &str| -> BTreeMap<String, TensorData> {
        let tensors = mean.adapter_tensors(name).unwrap().into_iter();
        let shared = |key: String| key.replace(&format!(".{name}."), ".adapter.");
        tensors.map(|(key, data)| (shared(key), data)).collect()
    };
    let parts = [(tensors("f"), 0.5), (tensors("g"), 0.5)];
    assert!(off(&tensors("mean"), &parts) < 1e-6);
}

//! The decoder: against upstream, and against itself on every path.

mod common;

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::{Golden, largest_error};
use peft_core::device::cpu_devices;
use peft_models::{Llama, LlamaConfig, LmBatch, LoadError};
use peft_testing::{farthest, largest};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama/base")
}

fn ids(values: &[u32], device: &Device) -> Tensor<2, Int> {
    let values: Vec<i64> = values.iter().map(|id| i64::from(*id)).collect();
    let shape = [1, values.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A text of the tiny models' vocabulary.
fn text(length: usize, seed: u32) -> Vec<u32> {
    let at = |i: usize| (i as u32 * 37 + seed * 11 + i as u32 * i as u32) % 97 + 3;
    (0..length).map(at).collect()
}

fn close(found: &TensorData, expected: &TensorData, share: f64, what: &str) {
    let largest = largest(expected.iter::<f32>());
    let error = farthest(found.iter::<f32>(), expected.iter::<f32>());
    assert!(
        error <= share * largest,
        "{what}: {error} apart, the largest is {largest}"
    );
}

#[test]
fn logits_are_upstreams() {
    let golden_values = Golden::open(golden().join("io.safetensors"));
    let expected = golden_values.floats("output");
    for (name, device) in cpu_devices() {
        let llama = Llama::load(golden(), &device).unwrap();
        let (ids, padding) = golden_values.inputs(&device);
        let error = largest_error(llama.forward(ids, padding), &expected);
        assert!(error < 1e-5, "{name}: {error}");
    }
}

#[test]
fn logits_of_relatives_are_upstreams() {
    for model in ["llama3", "mistral", "qwen2"] {
        let folder = Path::new("tests/golden/relatives").join(model);
        let golden_values = Golden::open(folder.join("io.safetensors"));
        let expected = golden_values.floats("output");
        for (name, device) in cpu_devices() {
            let llama = Llama::load(&folder, &device).unwrap();
            let (ids, padding) = golden_values.inputs(&device);
            let error = largest_error(llama.forward(ids, padding), &expected);
            // Of logits up to 6.
            assert!(error < 1e-5, "{model} on {name}: {error}");
            // What is written is such a model again.
            let dir = tempfile::tempdir().unwrap();
            llama.export(dir.path(), None).unwrap();
            let again = Llama::load(dir.path(), &device).unwrap();
            let (ids, padding) = golden_values.inputs(&device);
            let error = largest_error(again.forward(ids, padding), &expected);
            assert!(error < 1e-5, "{model} on {name}, written and read: {error}");
        }
    }
}

#[test]
fn a_cache_goes_on_where_the_text_ended() {
    for (name, device) in cpu_devices() {
        let llama = Llama::tiny(&device);
        let text = text(20, 1);
        let all = llama.forward(ids(&text, &device), None);
        let mut cache = llama.cache();
        for (from, to) in [(0, 7), (7, 8), (8, 9), (9, 17), (17, 20)] {
            let next = llama.next_logits(ids(&text[from..to], &device), &mut cache);
            assert_eq!(cache.len(), to);
            let expected = all.clone().slice([0..1, to - 1..to]).into_data();
            close(
                &next.into_data(),
                &expected,
                1e-5,
                &format!("{name}, {to} tokens"),
            );
        }
    }
}

/// Negative log likelihoods from the logits, summed in f64.
fn expected_loss(logits: &Tensor<3>, targets: &[i64]) -> f64 {
    let classes = logits.dims()[2];
    let values: Vec<f32> = logits.clone().into_data().iter::<f32>().collect();
    let rows = values.chunks_exact(classes).zip(targets);
    rows.filter(|(_, target)| **target >= 0)
        .map(|(logits, target)| {
            let exp: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            exp.ln() - f64::from(logits[*target as usize])
        })
        .sum()
}

#[test]
fn the_loss_is_that_of_the_logits() {
    for (name, device) in cpu_devices() {
        for tied in [true, false] {
            let mut config = LlamaConfig::tiny();
            config.tie_word_embeddings = tied;
            let llama = Llama::scrambled(&config, &device);
            let text = text(15, 2);
            let batch = LmBatch::of_text(&text);
            assert_eq!(batch.target_count(), 14);
            let logits = llama.forward(ids(&text, &device), None);
            let expected = expected_loss(&logits, &batch.targets);
            let found = f64::from(llama.loss(&batch).into_scalar::<f32>());
            assert!(
                (found / expected - 1.0).abs() < 1e-5,
                "{name}: {found}, {expected}"
            );
        }
    }
}

/// Documents in one row see themselves only.
#[test]
fn packed_documents_do_not_see_each_other() {
    for (name, device) in cpu_devices() {
        let llama = Llama::tiny(&device);
        let documents = [text(7, 3), text(12, 4), text(5, 5)];
        let apart: f64 = documents
            .iter()
            .map(|text| f64::from(llama.loss(&LmBatch::of_text(text)).into_scalar::<f32>()))
            .sum();
        let mut quantized = LmBatch {
            rows: 1,
            length: 26,
            segments: Some(Vec::new()),
            ..LmBatch::default()
        };
        for (index, document) in documents.iter().enumerate() {
            let alone = LmBatch::of_text(document);
            quantized.ids.extend(alone.ids);
            quantized.targets.extend(alone.targets);
            let segments = quantized.segments.as_mut().unwrap();
            segments.extend(vec![index as u32; document.len()]);
        }
        // Two places at the end are filled up.
        quantized.ids.extend([0, 0]);
        quantized.targets.extend([-100, -100]);
        quantized.segments.as_mut().unwrap().extend([9, 9]);
        quantized.padding = (0..26).map(|place| place >= 24).collect();
        let together = f64::from(llama.loss(&quantized).into_scalar::<f32>());
        assert!(
            (together / apart - 1.0).abs() < 1e-5,
            "{name}: {together}, {apart}"
        );
        quantized.segments = None;
        let blind = f64::from(llama.loss(&quantized).into_scalar::<f32>());
        assert!(
            (blind / apart - 1.0).abs() > 1e-3,
            "{name}: segments change nothing"
        );
    }
}

/// Padding in front of a row hides nothing from what comes after it, and is seen by nothing.
#[test]
fn padding_before_the_text_is_not_seen() {
    let device = cpu_devices().remove(0).1;
    let llama = Llama::tiny(&device);
    let batch = |filler: u32| LmBatch {
        ids: [vec![filler; 4], text(6, 6)].concat(),
        targets: [vec![-100; 4], LmBatch::of_text(&text(6, 6)).targets].concat(),
        padding: (0..10).map(|place| place < 4).collect(),
        rows: 1,
        length: 10,
        ..LmBatch::default()
    };
    let [one, other] = [5, 50].map(|filler| llama.loss(&batch(filler)).into_scalar::<f32>());
    assert!((one / other - 1.0).abs() < 1e-6, "{one} {other}");
}

fn gradients_of(llama: &Llama, gradients: &GradientsParams) -> Vec<(String, TensorData)> {
    use peft_core::PeftModule as _;
    struct Look<'a> {
        gradients: &'a GradientsParams,
        found: Vec<Option<TensorData>>,
    }
    impl burn::module::ModuleVisitor for Look<'_> {
        fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
            let gradient = self.gradients.get::<D>(param.id);
            self.found.push(gradient.map(Tensor::into_data));
        }
    }
    let mut look = Look {
        gradients,
        found: Vec::new(),
    };
    llama.visit(&mut look);
    let names = llama.layout().params.into_iter().map(|param| param.name);
    let found = names.zip(look.found);
    found
        .filter_map(|(name, gradient)| Some((name, gradient?)))
        .collect()
}

#[test]
fn layers_that_run_again_give_the_same_gradients() {
    for (name, device) in cpu_devices() {
        for tied in [true, false] {
            let mut config = LlamaConfig::tiny();
            config.tie_word_embeddings = tied;
            config.num_hidden_layers = 3;
            let llama = Llama::scrambled(&config, &device.clone().autodiff());
            let batch = LmBatch::of_text(&text(18, 7));
            let (kept, expected) = llama.loss_and_gradients(&batch, false, 0.25);
            let (again, found) = llama.loss_and_gradients(&batch, true, 0.25);
            assert!((kept / again - 1.0).abs() < 1e-6, "{name}: {kept} {again}");
            let (found, expected) = (
                gradients_of(&llama, &found),
                gradients_of(&llama, &expected),
            );
            assert_eq!(found.len(), expected.len(), "{name}");
            assert!(expected.len() > 25, "{name}: everything is trained");
            for ((path, found), (_, expected)) in found.iter().zip(&expected) {
                close(found, expected, 1e-4, &format!("{name}, {path}"));
            }
        }
    }
}

#[test]
fn an_exported_model_is_loaded_as_it_was() {
    let device = cpu_devices().remove(0).1;
    for kind in ["llama", "qwen2", "mistral"] {
        let mut config = LlamaConfig::tiny();
        config.model_type = kind.to_string();
        config.qkv_bias = kind == "qwen2";
        config.tie_word_embeddings = kind != "mistral";
        let llama = Llama::scrambled(&config, &device);
        let dir = tempfile::tempdir().unwrap();
        llama.export(dir.path(), None).unwrap();
        let again = Llama::load(dir.path(), &device).unwrap();
        assert_eq!(again.config(), &config);
        let text = ids(&text(11, 8), &device);
        let expected = llama.forward(text.clone(), None).into_data();
        again
            .forward(text, None)
            .into_data()
            .assert_eq(&expected, true);
    }
}

#[test]
fn what_cannot_be_a_model_is_refused() {
    let device = cpu_devices().remove(0).1;
    let dir = tempfile::tempdir().unwrap();
    let write = |change: &dyn Fn(&mut serde_json::Value)| {
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden().join(file), dir.path().join(file)).unwrap();
        }
        let path = dir.path().join("config.json");
        let mut json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
        Llama::load(dir.path(), &device)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let check = |field: &str, value: serde_json::Value, says: &str| {
        let message = write(&|json| json[field] = value.clone());
        assert!(message.contains(says), "{field} {value}: {message}");
    };
    check("model_type", "gpt2".into(), "`llama`, `mistral` or `qwen2`");
    check("num_attention_heads", 3.into(), "num_key_value_heads");
    check("num_key_value_heads", 0.into(), "num_key_value_heads");
    check("head_dim", 7.into(), "even");
    check("num_hidden_layers", 3.into(), "model.layers.2");
    check("num_hidden_layers", 1.into(), "model.layers.1");
    check("num_hidden_layers", 100_000.into(), "at most 1024");
    check("vocab_size", 100.into(), "[100, 32]");
    check("hidden_act", "gelu".into(), "`silu`");
    check("tie_word_embeddings", false.into(), "lm_head.weight");
    check("sliding_window", 16.into(), "window");
    check("eos_token_id", 101.into(), "below 101");
    let missing = Llama::load(dir.path().join("nowhere"), &device);
    assert!(matches!(missing, Err(LoadError::Io { .. })));
}

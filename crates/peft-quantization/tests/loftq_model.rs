//! LoftQ on a whole model, and the LoRA that starts from it.

use burn::tensor::{Int, Tensor, TensorData};
use peft_core::PeftModule;
use peft_core::device::cpu_devices;
use peft_core::quantize::QuantizedModule as _;
use peft_models::{Llama, LlamaLoader};
use peft_quantization::{
    Error, LoftQLayer, LoftQQuantizer, QuantizationConfig, Result, Tables, loftq_model,
};
use peft_reparameterization::{LoraConfig, init_from_factors};

const RANK: usize = 8;

fn config() -> QuantizationConfig {
    QuantizationConfig::nf4().with_tables(Tables::Float32)
}

fn logits(llama: &Llama) -> Vec<f32> {
    let ids: Vec<i64> = (0..20).map(|i| (i * 37 + i * i) % 97 + 3).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, 20]), &llama.device());
    llama.forward(ids, None).into_data().iter::<f32>().collect()
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    let squares = values.map(|value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
}

/// ‖found − expected‖ / ‖expected‖.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let errors = found.iter().zip(expected).map(|(a, b)| a - b);
    norm(errors) / norm(expected.iter().copied())
}

#[test]
fn a_lora_starts_nearer_to_the_dense_model_than_without() {
    for (name, device) in cpu_devices() {
        let dense = Llama::tiny(&device);
        let expected = logits(&dense);
        let error = |model: &Llama| distance(&logits(model), &expected);
        let plain = error(&dense.pack_weights(&config()).unwrap());
        assert!(plain > 0.02, "{name}: {plain}");
        for iterations in [1, 5] {
            let (quantized, layers) =
                loftq_model(&dense, &config(), RANK, iterations, |_| true).unwrap();
            assert_eq!(
                (quantized.quantized_weights().len(), layers.len()),
                (14, 14)
            );
            for layer in &layers {
                let (before, after) = (layer.error_before, layer.error_after);
                assert!(after < 0.9 * before, "{}: {before} {after}", layer.name);
            }
            let lora = LoraConfig::new(RANK).with_alpha(24.0);
            let model = quantized.attach("a", &lora).unwrap();
            let factors = layers.into_iter();
            let factors = factors.map(|layer| (layer.name, layer.down, layer.up));
            let started = init_from_factors(&model, "a", factors.collect()).unwrap();
            let found = error(&started);
            assert!(found < 0.8 * plain, "{name}: {plain}, with LoftQ {found}");
        }
    }
}

#[test]
fn other_layers_are_packed_as_without() {
    let device = cpu_devices().remove(0).1;
    let dense = Llama::tiny(&device);
    let wants = |layer: &str| layer.ends_with("q_proj");
    let (quantized, layers) = loftq_model(&dense, &config(), RANK, 5, wants).unwrap();
    let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.self_attn.q_proj"
        ]
    );
    let plain = dense.pack_weights(&config()).unwrap().quantized_weights();
    for ((name, found), (_, plain)) in quantized.quantized_weights().iter().zip(&plain) {
        let [found, plain] = [found, plain].map(|rows| rows.to_tensor(&device).into_data());
        assert_eq!(found == plain, !wants(name), "{name}");
    }
}

#[test]
fn a_model_that_is_loaded_gets_the_same() {
    let device = cpu_devices().remove(0).1;
    let dense = Llama::tiny(&device);
    let dir = tempfile::tempdir().unwrap();
    dense.export(dir.path(), None).unwrap();
    let config = config();
    let quantizer = LoftQQuantizer::new(&config, RANK, 1, |_: &str| true).unwrap();
    let loaded = LlamaLoader::new(dir.path())
        .with_quantizer(&quantizer)
        .load(&device)
        .unwrap();
    let (quantized, expected) = loftq_model(&dense, &config, RANK, 1, |_| true).unwrap();
    let values = |layers: Vec<LoftQLayer>| -> Vec<_> {
        let layers = layers.into_iter();
        layers
            .map(|layer| (layer.name, layer.down.into_data(), layer.up.into_data()))
            .collect()
    };
    assert_eq!(values(quantizer.into_layers(&device)), values(expected));
    let [found, expected] = [&loaded, &quantized].map(|llama| {
        let logits = logits(llama).into_iter();
        logits.map(f32::to_bits).collect::<Vec<_>>()
    });
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_be_is_refused() {
    let device = cpu_devices().remove(0).1;
    let dense = Llama::tiny(&device);
    let refusal = |found: Result<(Llama, Vec<LoftQLayer>)>| -> Error { found.unwrap_err() };
    let int8 = QuantizationConfig::int8();
    let skipping = config().with_skip_modules(["model"]);
    for (found, word) in [
        (loftq_model(&dense, &config(), 0, 1, |_| true), "rank"),
        (loftq_model(&dense, &config(), 8, 0, |_| true), "iterations"),
        (loftq_model(&dense, &config(), 17, 1, |_| true), "k_proj"),
        (loftq_model(&dense, &int8, 8, 1, |_| true), "load_in_4bit"),
        (loftq_model(&dense, &config(), 8, 1, |_| false), "wants"),
        (loftq_model(&dense, &skipping, 8, 1, |_| true), "wants"),
    ] {
        let refused = refusal(found).to_string();
        assert!(refused.contains(word), "{refused}");
    }
    let quantized = dense.pack_weights(&config()).unwrap();
    let refused = refusal(loftq_model(&quantized, &config(), 8, 1, |_| true)).to_string();
    assert!(refused.contains("dense model"), "{refused}");
}

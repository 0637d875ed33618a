//! What `transformers` computes from the same weights.

mod common;

use burn::tensor::{Bool, Device, Int, Tensor};
use common::{Golden, Raw, folder, largest_error, tiny_dir, tiny_tensors, write};
use half::{bf16, f16};
use peft_core::PeftModule;
use peft_core::device::cpu_devices;
use peft_models::{Bert, BertClassifier, BertTokenClassifier, Pooling};
use safetensors::Dtype;

fn hidden(bert: &Bert, device: &Device) -> Tensor<3> {
    let (ids, padding) = Golden::open(tiny_dir().join("io.safetensors")).inputs(device);
    bert.forward(ids, padding).hidden
}

fn expected() -> Vec<f32> {
    Golden::open(tiny_dir().join("io.safetensors")).floats("output")
}

#[test]
fn hidden_states_equal_upstreams_at_every_position() {
    for (name, device) in cpu_devices() {
        for device in [device.clone(), device.clone().autodiff()] {
            let bert = Bert::load(tiny_dir(), &device).unwrap();
            let error = largest_error(hidden(&bert, &device), &expected());
            println!("{name}, autodiff {}: {error:e}", device.is_autodiff());
            assert!(error < 1e-4, "{name}: {error}");
        }
    }
}

#[test]
fn padding_changes_nothing_for_the_other_tokens() {
    for (name, device) in cpu_devices() {
        let bert = Bert::load(tiny_dir(), &device).unwrap();
        let (ids, padding) = Golden::open(tiny_dir().join("io.safetensors")).inputs(&device);
        let whole = bert.forward(ids.clone(), padding.clone());
        // Row 2 has 5 tokens: alone and unpadded it must give the same.
        let alone = bert.forward(ids.slice([2..3, 0..5]), None);
        let cut = whole.hidden.clone().slice([2..3, 0..5]);
        let error: f32 = (alone.hidden.clone() - cut).abs().max().into_scalar();
        assert!(error < 1e-5, "{name}: {error}");
        let pooled = whole.mean(padding).narrow(0, 2, 1);
        let error: f32 = (alone.mean(None) - pooled).abs().max().into_scalar();
        assert!(error < 1e-5, "{name}: {error}");
    }
}

/// Stores a tensor in 16 bits.
fn halved(raw: &Raw, dtype: Dtype) -> Raw {
    let bytes = raw.values().into_iter().flat_map(|value| match dtype {
        Dtype::F16 => f16::from_f32(value).to_le_bytes(),
        _ => bf16::from_f32(value).to_le_bytes(),
    });
    Raw {
        dtype,
        bytes: bytes.collect(),
        ..raw.clone()
    }
}

#[test]
fn other_ways_to_store_the_model_give_the_model() {
    let device = cpu_devices().remove(0).1;
    let tensors = tiny_tensors();
    let prefixed: Vec<Raw> = tensors
        .iter()
        .map(|raw| Raw {
            name: format!("bert.{}", raw.name),
            ..raw.clone()
        })
        .collect();
    let legacy: Vec<Raw> = tensors
        .iter()
        .map(|raw| {
            let name = raw.name.replace("LayerNorm.weight", "LayerNorm.gamma");
            Raw {
                name: name.replace("LayerNorm.bias", "LayerNorm.beta"),
                ..raw.clone()
            }
        })
        .collect();
    let mut with_heads = prefixed.clone();
    with_heads.push(Raw::f32("cls.predictions.bias", &[97], &[0.0; 97]));
    with_heads.push(Raw::f32("classifier.weight", &[3, 32], &[0.5; 96]));
    with_heads.push(Raw::f32("classifier.bias", &[3], &[0.0; 3]));
    let ids: Vec<u8> = (0..40i64).flat_map(i64::to_le_bytes).collect();
    with_heads.push(Raw {
        name: "bert.embeddings.position_ids".to_string(),
        dtype: Dtype::I64,
        shape: vec![1, 40],
        bytes: ids,
    });
    for tensors in [&prefixed, &legacy, &with_heads] {
        let bert = Bert::load(folder(tensors).path(), &device).unwrap();
        assert!(largest_error(hidden(&bert, &device), &expected()) < 1e-4);
    }
    // Rounded weights, so rounded outputs.
    for (dtype, bound) in [(Dtype::F16, 0.01), (Dtype::BF16, 0.1)] {
        let halves: Vec<Raw> = tensors.iter().map(|raw| halved(raw, dtype)).collect();
        let bert = Bert::load(folder(&halves).path(), &device).unwrap();
        let error = largest_error(hidden(&bert, &device), &expected());
        println!("{dtype}: {error:e}");
        assert!(error < bound, "{dtype}: {error}");
    }
}

#[test]
fn sharded_checkpoints_are_put_together() {
    let device = cpu_devices().remove(0).1;
    let dir = folder(&[]);
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let tensors = tiny_tensors();
    let mut map = serde_json::Map::new();
    for (number, shard) in tensors.chunks(17).enumerate() {
        let file = format!("model-0000{number}-of-00003.safetensors");
        write(shard, &dir.path().join(&file));
        for raw in shard {
            map.insert(raw.name.clone(), file.clone().into());
        }
    }
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    let bert = Bert::load(dir.path(), &device).unwrap();
    assert!(largest_error(hidden(&bert, &device), &expected()) < 1e-4);

    let outside = serde_json::json!({ "weight_map": { "a": "../model.safetensors" } });
    std::fs::write(&index, outside.to_string()).unwrap();
    let error = Bert::load(dir.path(), &device).unwrap_err().to_string();
    assert!(error.contains("../model.safetensors"), "{error}");
}

#[test]
fn a_model_without_pooler_loads_without_one() {
    let device = cpu_devices().remove(0).1;
    let tensors: Vec<Raw> = tiny_tensors()
        .into_iter()
        .filter(|raw| !raw.name.starts_with("pooler"))
        .collect();
    let bert = Bert::load(folder(&tensors).path(), &device).unwrap();
    assert!(bert.pooler.is_none());
    let error = BertClassifier::new_head(bert, 2, Pooling::Cls, 0.1, &device).unwrap_err();
    assert!(error.to_string().contains("pooler"), "{error}");
}

/// A model's tensors below `bert`, with those of a head of three or two outputs, and its matrix and bias.
fn with_head(module: &str, outputs: usize) -> (Vec<Raw>, Vec<f32>, Vec<f32>) {
    let below = tiny_tensors().into_iter().map(|raw| Raw {
        name: format!("bert.{}", raw.name),
        ..raw
    });
    let weight: Vec<f32> = (0..outputs * 32).map(|i| (i as f32).sin()).collect();
    let bias = [0.1, -0.2, 0.3][..outputs].to_vec();
    let head = [
        Raw::f32(&format!("{module}.weight"), &[outputs, 32], &weight),
        Raw::f32(&format!("{module}.bias"), &[outputs], &bias),
    ];
    (below.chain(head).collect(), weight, bias)
}

#[test]
fn a_classifier_of_tokens_is_a_linear_layer_on_each() {
    for (name, device) in cpu_devices() {
        for (module, outputs) in [("classifier", 3), ("qa_outputs", 2)] {
            let (tensors, weight, bias) = with_head(module, outputs);
            let model = BertTokenClassifier::load(folder(&tensors).path(), &device).unwrap();
            assert!(model.bert.pooler.is_none());
            let heads = model.layout().layers.into_iter().filter(|layer| layer.head);
            let heads: Vec<String> = heads.map(|layer| layer.name).collect();
            assert_eq!(heads, [module]);
            let (ids, padding) = Golden::open(tiny_dir().join("io.safetensors")).inputs(&device);
            let scores = model.forward(ids, padding);
            assert_eq!(scores.dims(), [3, 11, outputs]);
            let of_token = |hidden: &[f32]| -> Vec<f32> {
                let products = weight.chunks(32).map(|row| {
                    let products = row.iter().zip(hidden).map(|(w, h)| w * h);
                    products.sum::<f32>()
                });
                products.zip(&bias).map(|(sum, b)| sum + b).collect()
            };
            let by_hand: Vec<f32> = expected().chunks(32).flat_map(of_token).collect();
            let error = largest_error(scores, &by_hand);
            assert!(error < 1e-4, "{name}, {module}: {error}");
        }
        let encoder = || Bert::load(tiny_dir(), &device).unwrap();
        let error = BertTokenClassifier::new_head(encoder(), 0, 0.1, &device).unwrap_err();
        assert!(error.to_string().contains("labels"), "{error}");
        // The head is missing, and nothing is drawn in its place.
        let error = BertTokenClassifier::load(tiny_dir(), &device).unwrap_err();
        assert!(error.to_string().contains("classifier.weight"), "{error}");
    }
}

#[test]
fn a_classifier_is_tanh_of_the_first_token_and_a_linear_layer() {
    for (name, device) in cpu_devices() {
        let (tensors, weight, bias) = with_head("classifier", 3);
        let model = BertClassifier::load(folder(&tensors).path(), &device).unwrap();
        let (ids, padding): (Tensor<2, Int>, Option<Tensor<2, Bool>>) =
            Golden::open(tiny_dir().join("io.safetensors")).inputs(&device);
        let logits = model.forward(ids, padding);
        assert_eq!(logits.dims(), [3, 3]);

        let tensor = |name: &str| {
            tiny_tensors()
                .into_iter()
                .find(|raw| raw.name == name)
                .unwrap()
                .values()
        };
        let (dense, shift) = (tensor("pooler.dense.weight"), tensor("pooler.dense.bias"));
        let hidden = expected();
        let mut by_hand = Vec::new();
        for row in 0..3 {
            let first = &hidden[row * 11 * 32..][..32];
            let pooled: Vec<f32> = (0..32)
                .map(|out| {
                    let sum: f32 = first
                        .iter()
                        .zip(&dense[out * 32..])
                        .map(|(h, w)| h * w)
                        .sum();
                    (sum + shift[out]).tanh()
                })
                .collect();
            for class in 0..3 {
                let sum: f32 = pooled
                    .iter()
                    .zip(&weight[class * 32..])
                    .map(|(p, w)| p * w)
                    .sum();
                by_hand.push(sum + bias[class]);
            }
        }
        let error = largest_error(logits, &by_hand);
        assert!(error < 1e-4, "{name}: {error}");
    }
}

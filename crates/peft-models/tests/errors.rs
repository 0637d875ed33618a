//! Damaged folders are refused, and the message names what is wrong.

mod common;

use std::path::Path;

use common::{Raw, configured, folder, tiny_tensors};
use peft_core::device::cpu_devices;
use peft_models::{Bert, BertClassifier, Pooling, Tokenizer};
use safetensors::Dtype;
use serde_json::{Value, json};

fn refusal(dir: &Path) -> String {
    Bert::load(dir, &cpu_devices().remove(0).1)
        .unwrap_err()
        .to_string()
}

fn assert_names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// The tiny model's tensors with one of them changed.
fn changed(name: &str, change: impl Fn(&mut Raw)) -> Vec<Raw> {
    let mut tensors = tiny_tensors();
    change(tensors.iter_mut().find(|raw| raw.name == name).unwrap());
    tensors
}

#[test]
fn a_missing_tensor() {
    let name = "encoder.layer.1.output.dense.bias";
    let tensors: Vec<Raw> = tiny_tensors()
        .into_iter()
        .filter(|raw| raw.name != name)
        .collect();
    assert_names(
        &refusal(folder(&tensors).path()),
        &["model.safetensors", "lacks 1", name],
    );
}

#[test]
fn half_a_pooler() {
    let name = "pooler.dense.bias";
    let tensors: Vec<Raw> = tiny_tensors()
        .into_iter()
        .filter(|raw| raw.name != name)
        .collect();
    assert_names(&refusal(folder(&tensors).path()), &[name]);
}

#[test]
fn an_extra_tensor() {
    let name = "encoder.layer.2.output.dense.bias";
    let mut tensors = tiny_tensors();
    tensors.push(Raw::f32(name, &[32], &[0.0; 32]));
    assert_names(
        &refusal(folder(&tensors).path()),
        &["model.safetensors", "no place", name],
    );
}

#[test]
fn a_wrong_shape() {
    let name = "encoder.layer.0.intermediate.dense.weight";
    let tensors = changed(name, |raw| raw.shape = vec![32, 64]);
    assert_names(
        &refusal(folder(&tensors).path()),
        &[name, "[64, 32]", "[32, 64]"],
    );
}

#[test]
fn a_number_that_is_none() {
    let name = "encoder.layer.0.attention.self.key.weight";
    for value in [f32::NAN, f32::INFINITY] {
        let tensors = changed(name, |raw| {
            raw.bytes[5 * 4..6 * 4].copy_from_slice(&value.to_le_bytes());
        });
        assert_names(
            &refusal(folder(&tensors).path()),
            &[name, "element 5", &value.to_string()],
        );
    }
}

#[test]
fn an_unknown_number_format() {
    let name = "embeddings.LayerNorm.bias";
    let tensors = changed(name, |raw| raw.dtype = Dtype::I32);
    assert_names(
        &refusal(folder(&tensors).path()),
        &[name, "I32", "F32, F16 and BF16"],
    );
}

#[test]
fn two_names_for_one_tensor() {
    let mut tensors = tiny_tensors();
    tensors.push(Raw::f32("bert.pooler.dense.bias", &[32], &[0.0; 32]));
    assert_names(&refusal(folder(&tensors).path()), &["pooler.dense.bias"]);
}

#[test]
fn a_file_of_the_wrong_length() {
    let dir = folder(&tiny_tensors());
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let whole = bytes.len();
    for length in [whole - 1, whole / 2, 5000, 100, 8] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let parts = ["model.safetensors", &format!("{length} bytes")];
        assert_names(&refusal(dir.path()), &parts);
    }
    std::fs::write(&path, &bytes[..3]).unwrap();
    assert_names(&refusal(dir.path()), &["model.safetensors", "3 bytes"]);
    std::fs::write(&path, [bytes, vec![0]].concat()).unwrap();
    assert_names(
        &refusal(dir.path()),
        &["model.safetensors", &format!("{} bytes", whole + 1)],
    );
}

#[test]
fn a_hostile_header() {
    let dir = folder(&tiny_tensors());
    let path = dir.path().join("model.safetensors");
    let with_header = |header: &str, data: usize| {
        let length = (header.len() as u64).to_le_bytes();
        let file = [length.as_slice(), header.as_bytes(), &vec![0; data]].concat();
        std::fs::write(&path, file).unwrap();
        refusal(dir.path())
    };
    std::fs::write(&path, [u64::MAX.to_le_bytes(), [0; 8]].concat()).unwrap();
    assert_names(
        &refusal(dir.path()),
        &["model.safetensors", &u64::MAX.to_string()],
    );
    assert_names(&with_header("{", 0), &["model.safetensors", "EOF"]);
    let overlapping = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    assert_names(
        &with_header(overlapping, 4),
        &["model.safetensors", "not a usable"],
    );
    let huge = r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}"#;
    assert_names(
        &with_header(huge, 4),
        &["model.safetensors", "not a usable"],
    );
}

#[test]
fn files_that_are_not_there() {
    let dir = folder(&tiny_tensors());
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_names(&refusal(dir.path()), &["cannot read", "model.safetensors"]);
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert_names(&refusal(dir.path()), &["cannot read", "config.json"]);
}

#[test]
fn configurations_that_are_not_supported() {
    let cases: &[(&str, Value, &[&str])] = &[
        ("model_type", json!("roberta"), &["`roberta`", "`bert`"]),
        ("hidden_act", json!("silu"), &["silu", "gelu_new", "relu"]),
        ("hidden_act", json!(3), &["gelu"]),
        (
            "position_embedding_type",
            json!("relative_key"),
            &["relative_key", "`absolute`"],
        ),
        ("is_decoder", json!(true), &["true"]),
        ("num_attention_heads", json!(0), &["at least 1"]),
        ("num_hidden_layers", json!(1_000_000_000), &["at most 1024"]),
        ("hidden_dropout_prob", json!(1.0), &["[0, 1)"]),
        ("layer_norm_eps", json!(-1.0), &["not negative"]),
    ];
    for (field, value, parts) in cases {
        let text = refusal(configured(&[(field, value.clone())]).path());
        assert_names(&text, &["config.json", field]);
        assert_names(&text, parts);
    }
    let heads = refusal(configured(&[("num_attention_heads", json!(5))]).path());
    assert_names(&heads, &["config.json", "hidden_size", "multiple of the 5"]);
    let unsized_ = refusal(configured(&[("vocab_size", Value::Null)]).path());
    assert_names(&unsized_, &["config.json", "vocab_size"]);
    let unknown = [("model_type", Value::Null), ("architectures", Value::Null)];
    assert_names(
        &refusal(configured(&unknown).path()),
        &["config.json", "model_type", "missing"],
    );
    let other = refusal(configured(&[("vocab_size", json!(98))]).path());
    assert_names(&other, &["word_embeddings.weight", "[98, 32]", "[97, 32]"]);
}

#[test]
fn an_old_configuration_without_a_model_type_is_read() {
    let dir = configured(&[
        ("model_type", Value::Null),
        ("hidden_act", json!("gelu_new")),
    ]);
    assert!(Bert::load(dir.path(), &cpu_devices().remove(0).1).is_ok());
}

#[test]
fn packed_tensors_whose_parts_do_not_fit() {
    let name = "encoder.layer.0.attention.self.key.weight";
    let mut tensors: Vec<Raw> = tiny_tensors()
        .into_iter()
        .filter(|raw| raw.name != name)
        .collect();
    let part = |suffix: &str, dtype, bytes: usize| Raw {
        name: format!("{name}{suffix}"),
        dtype,
        shape: vec![if dtype == Dtype::F16 {
            bytes / 2
        } else {
            bytes
        }],
        bytes: vec![0x3c; bytes],
    };
    tensors.push(part(".q4", Dtype::U8, 512));
    let shapes = |dir: &tempfile::TempDir, shape: Value| {
        let text = json!({ name: shape }).to_string();
        std::fs::write(dir.path().join("shapes.json"), text).unwrap();
    };
    let dir = folder(&tensors);
    assert_names(&refusal(dir.path()), &["cannot read", "shapes.json"]);
    shapes(&dir, json!([32, 32]));
    assert_names(&refusal(dir.path()), &[name, ".scales` is missing"]);
    shapes(&dir, json!([usize::MAX, 3]));
    assert_names(&refusal(dir.path()), &[name, "too large"]);

    tensors.push(part(".scales", Dtype::F16, 62));
    let dir = folder(&tensors);
    shapes(&dir, json!([32, 32]));
    assert_names(
        &refusal(dir.path()),
        &[name, ".scales` must hold 64 bytes of F16"],
    );

    tensors.pop();
    tensors.push(part(".scales", Dtype::F16, 64));
    let dir = folder(&tensors);
    shapes(&dir, json!([32, 32]));
    assert!(Bert::load(dir.path(), &cpu_devices().remove(0).1).is_ok());
}

#[test]
fn heads_that_cannot_be() {
    let device = cpu_devices().remove(0).1;
    let head = |classes, dropout| {
        BertClassifier::new_head(
            Bert::tiny(&device),
            classes,
            Pooling::Mean,
            dropout,
            &device,
        )
    };
    assert_names(
        &head(0, 0.1).unwrap_err().to_string(),
        &["classes", "at least 1"],
    );
    assert_names(
        &head(2, 1.0).unwrap_err().to_string(),
        &["dropout", "[0, 1)"],
    );
    assert_names(
        &head(2, f64::NAN).unwrap_err().to_string(),
        &["dropout", "NaN"],
    );
    let headless = folder(&tiny_tensors());
    let error = BertClassifier::load(headless.path(), &device)
        .unwrap_err()
        .to_string();
    assert_names(&error, &["classifier.weight", "classifier.bias"]);
}

/// A word-level tokenizer of `words`, numbered from 0.
fn tokenizer(dir: &Path, words: &[&str]) {
    let vocab: serde_json::Map<String, Value> = words
        .iter()
        .enumerate()
        .map(|(id, word)| ((*word).to_string(), json!(id)))
        .collect();
    let special = |token: &str, id: usize| json!({ "id": token, "ids": [id], "tokens": [token] });
    let file = json!({
        "version": "1.0",
        "truncation": { "max_length": 3, "strategy": "LongestFirst", "stride": 0 },
        "padding": { "strategy": { "Fixed": 16 }, "direction": "Left", "pad_to_multiple_of": null,
                     "pad_id": 7, "pad_type_id": 0, "pad_token": "x" },
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } },
                       { "Sequence": { "id": "A", "type_id": 0 } },
                       { "SpecialToken": { "id": "[SEP]", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
                     { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "[CLS]": special("[CLS]", 1), "[SEP]": special("[SEP]", 2) }
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[PAD]" }
    });
    std::fs::write(dir.join("tokenizer.json"), file.to_string()).unwrap();
}

#[test]
fn batches_are_cut_and_filled_as_asked_and_not_as_the_file_says() {
    let dir = folder(&tiny_tensors());
    tokenizer(dir.path(), &["[PAD]", "[CLS]", "[SEP]", "a", "b", "c", "d"]);
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let batch = tokenizer.encode_batch(&["a b c d", "b", ""], 5).unwrap();
    assert_eq!((batch.rows, batch.length), (3, 5));
    assert_eq!(batch.ids, [1, 3, 4, 5, 2, 1, 4, 2, 0, 0, 1, 2, 0, 0, 0]);
    let padded: Vec<usize> = (0..15).filter(|&place| batch.padding[place]).collect();
    assert_eq!(padded, [8, 9, 12, 13, 14]);
    let device = cpu_devices().remove(0).1;
    assert!(batch.to_device(&device).1.is_some());
    assert!(
        tokenizer
            .encode_batch(&["a", "b"], 5)
            .unwrap()
            .to_device(&device)
            .1
            .is_none()
    );
    for max_len in [0, 2, 41] {
        let error = tokenizer
            .encode_batch(&["a"], max_len)
            .unwrap_err()
            .to_string();
        assert_names(&error, &["max_len", &max_len.to_string(), "from 3 to 40"]);
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model() {
    let dir = folder(&tiny_tensors());
    let words: Vec<String> = (0..99).map(|word| format!("w{word}")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    tokenizer(dir.path(), &words);
    let read = Tokenizer::load(dir.path()).unwrap();
    assert!(read.encode(&["w95 w96"], 8).is_ok());
    let error = read.encode(&["w95", "w96 w98"], 8).unwrap_err().to_string();
    assert_names(&error, &["tokenizer.json", "`w98`", "98", "97"]);
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert_names(
        &Tokenizer::load(dir.path()).unwrap_err().to_string(),
        &["tokenizer.json"],
    );
}

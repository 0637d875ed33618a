//! Published weights, where they are on this machine: `cargo xtask fetch` brings them.

mod common;

use std::path::{Path, PathBuf};

use burn::module::Module;
use common::{Golden, largest_error};
use peft_core::device::cpu_devices;
use peft_models::{Bert, Tokenizer};
use peft_testing::{fetched, skip};

fn golden_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/minilm_l6.safetensors")
}

/// Texts in the golden file's metadata.
fn golden_texts() -> Vec<String> {
    let bytes = std::fs::read(golden_file()).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&metadata.metadata().as_ref().unwrap()["texts"]).unwrap()
}

/// The folder with the embedded model's files.
fn embedded() -> Option<PathBuf> {
    let dir = std::env::var_os("PEFT_EMBEDDED_MODEL").map(PathBuf::from);
    if dir.is_none() {
        skip("no embedded model; `cargo xtask check` brings it");
    }
    dir
}

#[test]
fn minilm_l6_equals_upstream() {
    let Some(weights) = fetched("all-MiniLM-L6-v2/model.safetensors") else {
        return;
    };
    let dir = weights.parent().unwrap();
    let golden = Golden::open(golden_file());
    let tokenizer = Tokenizer::load(dir).unwrap();
    let texts = golden_texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = tokenizer.encode_batch(&texts, 128).unwrap();
    let (ids, shape) = golden.ints("input_ids");
    let (mask, _) = golden.ints("attention_mask");
    assert_eq!([batch.rows, batch.length], shape);
    assert!(
        batch
            .ids
            .iter()
            .zip(&ids)
            .all(|(found, id)| i64::from(*found) == *id)
    );
    assert!(
        batch
            .padding
            .iter()
            .zip(&mask)
            .all(|(padded, kept)| *padded == (*kept == 0))
    );

    for (name, device) in cpu_devices() {
        let bert = Bert::load(dir, &device).unwrap();
        assert!(bert.pooler.is_some());
        assert_eq!(bert.num_params(), 22_713_216);
        let (ids, padding) = batch.to_device(&device);
        let output = bert.forward(ids, padding.clone());
        let hidden = largest_error(output.hidden.clone(), &golden.floats("last_hidden_state"));
        let pooled = largest_error(output.mean(padding), &golden.floats("mean_pooled"));
        println!("{name}: hidden {hidden:e}, mean {pooled:e}");
        assert!(hidden < 1e-4 && pooled < 1e-4, "{name}: {hidden} {pooled}");
    }
}

/// Cosine of the angle between two vectors.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn the_embedded_model_knows_what_is_similar() {
    let Some(dir) = embedded() else { return };
    let tokenizer = Tokenizer::load(&dir).unwrap();
    // The first two are the texts of the package's own reference, the rest those of its tests.
    let texts = [
        "This is an example sentence",
        "Each sentence is converted",
        "Send a document",
        "Transfer a file",
        "A volcano erupts",
        "The dog chased the cat",
        "The cat chased the dog",
    ];
    let batch = tokenizer.encode_batch(&texts, 128).unwrap();
    for (name, device) in cpu_devices() {
        let bert = Bert::load(&dir, &device).unwrap();
        let (ids, padding) = batch.to_device(&device);
        let pooled = bert.forward(ids, padding.clone()).mean(padding);
        let values: Vec<f32> = pooled.into_data().try_to_vec().unwrap();
        let rows: Vec<&[f32]> = values.chunks(384).collect();
        let (near, far) = (cosine(rows[2], rows[3]), cosine(rows[2], rows[4]));
        println!("{name}: near {near}, far {far}");
        assert!(near > far + 0.2, "{name}: {near} {far}");
        assert!(
            cosine(rows[5], rows[6]) < 0.999,
            "{name}: word order is lost"
        );

        // Embeddings that PyTorch computes from the f32 weights: what is left is the packing's.
        let reference = dir.join("../tests/reference.json");
        let Ok(text) = std::fs::read(&reference) else {
            skip(format!(
                "no {}: embeddings are not compared",
                reference.display()
            ));
            continue;
        };
        let reference: serde_json::Value = serde_json::from_slice(&text).unwrap();
        for (row, expected) in rows.iter().zip(reference["embeddings"].as_array().unwrap()) {
            let expected: Vec<f32> = serde_json::from_value(expected.clone()).unwrap();
            let similarity = cosine(row, &expected);
            println!("{name}: cosine with f32 weights {similarity}");
            assert!(similarity > 0.95, "{name}: {similarity}");
        }
    }
}

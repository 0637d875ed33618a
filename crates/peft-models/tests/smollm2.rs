//! The published SmolLM2-135M-Instruct, where it is on this machine: `cargo xtask fetch` brings it.

mod common;

use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData};
use common::Golden;
use peft_core::device::cpu_devices;
use peft_models::{GenerateConfig, Llama, LlamaTokenizer, LmBatch};
use peft_testing::farthest;
use safetensors::SafeTensors;

fn row(ids: &[u32], device: &burn::tensor::Device) -> Tensor<2, Int> {
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let shape = [1, ids.len()];
    Tensor::from_data(TensorData::new(ids, shape), device)
}

#[test]
fn smollm2_equals_upstream() {
    let Some(dir) = peft_testing::fetched("SmolLM2-135M-Instruct") else {
        return;
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2_135m.safetensors");
    let golden = Golden::open(&file);
    let bytes = std::fs::read(&file).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = metadata.metadata().clone().unwrap();
    let texts: Vec<String> = serde_json::from_str(&metadata["texts"]).unwrap();
    // The file holds every so many-th logit.
    let every: usize = metadata["every"].parse().unwrap();
    let tokenizer = LlamaTokenizer::load(&dir).unwrap();
    // One backend is enough for 30 layers; the tiny models run on all.
    let device = cpu_devices().remove(0).1;
    let llama = Llama::load(&dir, &device).unwrap();
    let ids = |name: &str| {
        let (ids, _) = golden.ints(name);
        ids.into_iter().map(|id| id as u32).collect::<Vec<u32>>()
    };
    for (index, text) in texts.iter().enumerate() {
        let prompt = ids(&format!("{index}.input_ids"));
        // Upstream's file begins with the token that begins texts; this tokenizer's header adds none.
        let mut encoded = vec![tokenizer.bos().unwrap()];
        encoded.extend(tokenizer.encode(text, true).unwrap());
        assert_eq!(encoded, prompt, "{text}");
        let mut cache = llama.cache();
        let logits = llama.next_logits(row(&prompt, &device), &mut cache);
        let expected = golden.floats(&format!("{index}.last_logits"));
        let found = logits.into_data();
        assert!(expected.len() > 1000);
        let error = farthest(found.iter::<f32>().step_by(every), expected);
        println!("{text}: logits differ by {error}");
        assert!(error < 2e-3, "{text}: {error}");
        let greedy = ids(&format!("{index}.greedy"));
        let config = GenerateConfig::default()
            .with_max_new_tokens(greedy.len() - prompt.len())
            .with_eos_token_id([]);
        let found = llama.generate_ids(&prompt, &config).unwrap();
        assert_eq!(found, greedy[prompt.len()..], "{text}");
    }
    let long = ids("long.input_ids");
    let batch = LmBatch::of_text(&long);
    let loss = f64::from(llama.loss(&batch).into_scalar::<f32>()) / batch.target_count() as f64;
    let expected = f64::from(golden.floats("long.nll")[0]);
    println!("long text: {loss}, upstream {expected}");
    assert!(
        (loss - expected).abs() < 1e-3,
        "{loss} instead of {expected}"
    );
}

//! Growing vocabularies: an encoder's table and tokenizer, and adapters that Hugging Face PEFT saved over a larger table.

use burn::tensor::{Device, Int, Tensor};
use peft::core::PeftModule as _;
use peft::core::device::cpu_devices;
use peft::core::quantize::QuantizedModule as _;
use peft::quantization::QuantizationConfig;
use peft::reparameterization::LoraConfig;
use peft_models::{Bert, BertClassifier, Pooling, Tokenizer};
use peft_testing::farthest;
use serde_json::json;

use super::{golden, ids, io, numbers};

const WORDS: usize = 97;

fn base(device: &Device) -> Bert {
    Bert::load(golden("bert/base"), device).unwrap()
}

fn classifier(device: &Device) -> BertClassifier {
    BertClassifier::new_head(base(device), 3, Pooling::Mean, 0.0, device).unwrap()
}

fn hidden(model: &Bert, ids: &Tensor<2, Int>) -> Vec<f64> {
    numbers(model.forward(ids.clone(), None).hidden)
}

#[test]
fn adapters_that_were_saved_over_a_resized_vocabulary_compute_what_upstream_computes() {
    for (name, device) in cpu_devices() {
        for case in ["bert", "bert_tokens", "bert_saved"] {
            let folder = golden("vocabulary").join(case);
            let base = base(&device);
            // The smaller model does not take it, and says why.
            let error = base.load_adapter("a", &folder, &peft::methods());
            let error = error.map(|_| ()).unwrap_err().to_string();
            let rows = if case == "bert_tokens" { "97" } else { "100" };
            assert!(error.contains(rows), "{case}: {error}");

            let grown = base.with_vocabulary_of(&folder).unwrap();
            assert_eq!(grown.config().vocab_size, 100);
            let model = grown.load_adapter("a", &folder, &peft::methods()).unwrap();
            let (ids, expected) = io(&folder, &device);
            let far = farthest(hidden(&model, &ids), expected);
            assert!(far < 1e-5, "{name}, {case}: {far}");
        }
    }
}

#[test]
fn another_models_vocabulary_is_refused_and_a_folder_without_one_changes_nothing() {
    let (_, device) = &cpu_devices()[0];
    let other = Bert::tiny(device);
    let error = other.with_vocabulary_of(golden("vocabulary/bert"));
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
    let model = classifier(device);
    // Within a task model the table has another name: an encoder's file does not hold it.
    let same = model.with_vocabulary_of(golden("vocabulary/bert")).unwrap();
    assert_eq!(same.bert.config().vocab_size, WORDS);
    let dir = tempfile::tempdir().unwrap();
    let lora = LoraConfig::new(2).with_targets(["query"]);
    let plain = model.attach("a", &lora).unwrap();
    plain.save_adapter("a", dir.path()).unwrap();
    let same = model.with_vocabulary_of(dir.path()).unwrap();
    assert_eq!(same.bert.config().vocab_size, WORDS);
}

#[test]
fn new_rows_are_the_mean_and_old_tokens_mean_what_they_meant() {
    for (name, device) in cpu_devices() {
        let model = classifier(&device);
        let grown = model.resize_token_embeddings(110).unwrap();
        let table = numbers(grown.bert.embeddings.word_embeddings.weight.val());
        let width = grown.bert.config().hidden_size;
        let rows: Vec<&[f64]> = table.chunks(width).collect();
        assert_eq!(
            [rows.len(), grown.bert.config().vocab_size],
            [110, 110],
            "{name}"
        );
        for column in 0..width {
            let mean = rows[..WORDS].iter().map(|row| row[column]).sum::<f64>() / WORDS as f64;
            for row in &rows[WORDS..] {
                assert!((row[column] - mean).abs() < 1e-6, "{name}");
            }
        }
        let text = ids(&[5, 9, 33, 96, 2], &device);
        let logits = |model: &BertClassifier| numbers(model.forward(text.clone(), None));
        assert_eq!(logits(&grown), logits(&model), "{name}");
        let new = ids(&[5, 97, 33, 109, 2], &device);
        let one = numbers(grown.forward(new, None));
        let other = numbers(grown.forward(ids(&[5, 109, 33, 97, 2], &device), None));
        assert_eq!(one, other, "{name}");
        assert!(farthest(one, logits(&model)) > 1e-3, "{name}");
        let encoder = base(&device).resize_token_embeddings(110).unwrap();
        let far = farthest(hidden(&encoder, &text), hidden(&grown.bert, &text));
        assert!(far < 1e-6, "{name}: {far}");
        let same = model.resize_token_embeddings(WORDS).unwrap();
        assert_eq!(logits(&same), logits(&model), "{name}");
    }
}

#[test]
fn a_grown_model_is_adapted_and_saved() {
    let (_, device) = &cpu_devices()[0];
    let grown = classifier(device).resize_token_embeddings(99).unwrap();
    let lora = LoraConfig::new(2)
        .with_targets(["query"])
        .with_init_lora_weights(false)
        .with_trainable_token_indices([97, 98]);
    let model = grown.attach("a", &lora).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path()).unwrap();
    let loaded = grown
        .load_adapter("b", dir.path(), &peft::methods())
        .unwrap();
    let text = ids(&[97, 5, 98], device);
    let logits = |model: &BertClassifier| numbers(model.forward(text.clone(), None));
    assert_eq!(logits(&loaded), logits(&model));
    assert_ne!(logits(&loaded), logits(&grown));
}

#[test]
fn what_cannot_grow_is_refused() {
    let (_, device) = &cpu_devices()[0];
    let model = classifier(device);
    let refused = |model: &BertClassifier, rows: usize, words: &[&str]| {
        let error = model.resize_token_embeddings(rows).map(|_| ());
        let error = error.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(&model, 90, &["rows", "90", "at least 97"]);
    let lora = LoraConfig::new(2).with_targets(["query"]);
    let adapted = model.attach("mine", &lora).unwrap();
    refused(&adapted, 110, &["adapters", "mine"]);
    let quantizer = QuantizationConfig::int8()
        .with_skip_modules(Vec::<String>::new())
        .with_burn_block_size(None);
    let packed = model.pack_weights(&quantizer).unwrap();
    let table = "`bert.embeddings.word_embeddings` quantized";
    refused(&packed, 110, &[table, "dense"]);
    let encoder = base(device).pack_weights(&quantizer).unwrap();
    let error = encoder.resize_token_embeddings(110).map(|_| ());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("`embeddings.word_embeddings` quantized"),
        "{error}"
    );
}

#[test]
fn new_tokens_are_cut_out_of_texts() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        golden("bert/base/config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "a": 0, "z": 96 }, "unk_token": "a" }
    });
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(tokenizer.vocab_size(), WORDS);
    let (grown, new) = tokenizer
        .with_tokens(&["[QUERY]", "zyzzyva", "z"], true)
        .unwrap();
    assert_eq!(new[2], 96, "it was there");
    let text = "a [QUERY] z";
    let cut = grown.encode(&[text], 8).unwrap();
    assert_eq!(cut, [[0, new[0], 96]]);
    assert!(!tokenizer.encode(&[text], 8).unwrap()[0].contains(&new[0]));
    assert!(grown.vocab_size() > new[1] as usize);
    // The model with as many rows has an embedding for each.
    let (_, device) = &cpu_devices()[0];
    let model = base(device)
        .resize_token_embeddings(grown.vocab_size())
        .unwrap();
    let (ids, _) = grown.batch(&cut).to_device(device);
    assert!(hidden(&model, &ids).iter().all(|value| value.is_finite()));
    // Once more changes nothing.
    let (again, same) = grown.with_tokens(&["zyzzyva", "[QUERY]"], true).unwrap();
    assert_eq!((same[0], same[1]), (new[1], new[0]));
    assert_eq!(again.vocab_size(), grown.vocab_size());
    let error = tokenizer
        .with_tokens(&["b", ""], false)
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("empty"), "{error}");
}

//! Growing vocabularies: a Llama's table, head and tokenizer, and adapters that Hugging Face PEFT saved over a larger table.

use peft::core::checkpoint::read_tensors;
use peft::core::device::cpu_devices;
use peft::core::quantize::QuantizedModule as _;
use peft::core::{PeftModule as _, checkpoint};
use peft::quantization::QuantizationConfig;
use peft::reparameterization::LoraConfig;
use peft_models::{Llama, LlamaTokenizer};
use peft_testing::farthest;

use super::{golden, ids, io, numbers};

const TIED: &str = "llama/base";
const UNTIED: &str = "relatives/llama3";

#[test]
fn adapters_that_were_saved_over_a_resized_vocabulary_compute_what_upstream_computes() {
    for (name, device) in cpu_devices() {
        for (case, base) in [
            ("tied", TIED),
            ("tied_tokens", TIED),
            ("untied", UNTIED),
            ("untied_saved", UNTIED),
        ] {
            let folder = golden("vocabulary").join(case);
            let base = Llama::load(golden(base), &device).unwrap();
            // The smaller model does not take it, and says why.
            let error = base.load_adapter("a", &folder, &peft::methods());
            let error = error.map(|_| ()).unwrap_err().to_string();
            let rows = if case == "tied_tokens" { "101" } else { "104" };
            assert!(error.contains(rows), "{case}: {error}");

            let grown = base.with_vocabulary_of(&folder).unwrap();
            assert_eq!(grown.config().vocab_size, 104);
            let model = grown.load_adapter("a", &folder, &peft::methods()).unwrap();
            let (ids, expected) = io(&folder, &device);
            let far = farthest(numbers(model.forward(ids, None)), expected);
            assert!(far < 1e-5, "{name}, {case}: {far}");
        }
    }
}

#[test]
fn another_models_vocabulary_is_refused_and_a_folder_without_one_changes_nothing() {
    let (_, device) = &cpu_devices()[0];
    let other = Llama::load(golden(UNTIED), device).unwrap();
    let error = other.with_vocabulary_of(golden("vocabulary/tied"));
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let lora = LoraConfig::new(2).with_targets(["q_proj"]);
    let plain = other.attach("a", &lora).unwrap();
    plain.save_adapter("a", dir.path()).unwrap();
    let same = other.with_vocabulary_of(dir.path()).unwrap();
    assert_eq!(same.config().vocab_size, 101);
    assert!(checkpoint::read_config(dir.path()).is_ok());
}

#[test]
fn new_rows_are_the_mean_and_old_tokens_mean_what_they_meant() {
    for (name, device) in cpu_devices() {
        for path in [TIED, UNTIED] {
            let base = Llama::load(golden(path), &device).unwrap();
            let grown = base.resize_token_embeddings(110).unwrap();
            let table = numbers(grown.model.embed_tokens.weight.val());
            let width = grown.config().hidden_size;
            let rows: Vec<&[f64]> = table.chunks(width).collect();
            assert_eq!(rows.len(), 110);
            for column in 0..width {
                let mean = rows[..101].iter().map(|row| row[column]).sum::<f64>() / 101.0;
                for row in &rows[101..] {
                    assert!((row[column] - mean).abs() < 1e-6, "{name}, {path}");
                }
            }
            let text = ids(&[5, 9, 33, 100, 2], &device);
            let logits = |model: &Llama| model.forward(text.clone(), None);
            let (old, new) = (logits(&base), logits(&grown));
            assert_eq!(new.dims(), [1, 5, 110]);
            let far = farthest(numbers(new.clone().narrow(2, 0, 101)), numbers(old.clone()));
            assert!(far < 1e-5, "{name}, {path}: {far}");
            // The head's new columns are the mean, too, and so are their logits.
            let mean = numbers(old.mean_dim(2));
            for at in 101..110 {
                let far = farthest(numbers(new.clone().narrow(2, at, 1)), mean.clone());
                assert!(far < 1e-5, "{name}, {path}: {far}");
            }
            let same = base.resize_token_embeddings(101).unwrap();
            assert_eq!(numbers(logits(&same)), numbers(logits(&base)));
        }
    }
}

#[test]
fn a_grown_model_is_trained_saved_and_exported() {
    let (_, device) = &cpu_devices()[0];
    let base = Llama::load(golden(TIED), device).unwrap();
    let grown = base.resize_token_embeddings(103).unwrap();
    let lora = LoraConfig::new(2)
        .with_targets(["q_proj"])
        .with_trainable_token_indices([101, 102]);
    let model = grown.attach("a", &lora).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path().join("adapter")).unwrap();
    let loaded = grown.load_adapter("b", dir.path().join("adapter"), &peft::methods());
    assert!(loaded.is_ok());
    grown.export(dir.path().join("model"), None).unwrap();
    let back = Llama::load(dir.path().join("model"), device).unwrap();
    assert_eq!(back.config(), grown.config());
    let text = ids(&[101, 5, 102], device);
    let logits = |model: &Llama| numbers(model.forward(text.clone(), None));
    assert_eq!(logits(&back), logits(&grown));
    let tensors = read_tensors(&dir.path().join("model/model.safetensors")).unwrap();
    assert_eq!(
        tensors["model.embed_tokens.weight"].shape().to_vec(),
        [103, 32]
    );
}

#[test]
fn what_cannot_grow_is_refused() {
    let (_, device) = &cpu_devices()[0];
    let base = Llama::load(golden(UNTIED), device).unwrap();
    let refused = |model: &Llama, rows: usize, words: &[&str]| {
        let error = model.resize_token_embeddings(rows).map(|_| ());
        let error = error.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(&base, 100, &["rows", "100", "at least 101"]);
    let lora = LoraConfig::new(2).with_targets(["q_proj"]);
    let adapted = base.attach("mine", &lora).unwrap();
    refused(&adapted, 110, &["adapters", "mine"]);
    let quantizer = QuantizationConfig::int8()
        .with_skip_modules(Vec::<String>::new())
        .with_burn_block_size(None);
    let packed = base.pack_weights(&quantizer).unwrap();
    refused(&packed, 110, &["`model.embed_tokens` quantized", "dense"]);
}

#[test]
fn new_tokens_are_cut_out_of_texts_and_come_back() {
    let folder = golden("generate/model");
    let tokenizer = LlamaTokenizer::load(&folder).unwrap();
    let before = tokenizer.vocab_size();
    let (grown, new) = tokenizer
        .with_tokens(&["<|tool|>", "zyzzyva"], true)
        .unwrap();
    assert!(new.iter().all(|id| (*id as usize) < grown.vocab_size()));
    assert!(grown.vocab_size() >= before);
    let text = "one <|tool|> two";
    let cut = grown.encode(text, false).unwrap();
    assert!(cut.contains(&new[0]) && !tokenizer.encode(text, false).unwrap().contains(&new[0]));
    assert!(!grown.decode(&cut, true).unwrap().contains("tool"));
    assert!(grown.decode(&cut, false).unwrap().contains("<|tool|>"));
    // Once more changes nothing.
    let (again, same) = grown.with_tokens(&["zyzzyva", "<|tool|>"], true).unwrap();
    assert_eq!((same[0], same[1]), (new[1], new[0]));
    assert_eq!(again.vocab_size(), grown.vocab_size());
    let error = tokenizer
        .with_tokens(&["a", ""], false)
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("empty"), "{error}");
    // The folder of a grown model has both.
    let dir = tempfile::tempdir().unwrap();
    let (_, device) = &cpu_devices()[0];
    let model = Llama::load(&folder, device).unwrap();
    let model = model.resize_token_embeddings(grown.vocab_size()).unwrap();
    model.export(dir.path(), Some(&grown)).unwrap();
    let read = LlamaTokenizer::load(dir.path()).unwrap();
    assert_eq!(read.encode(text, false).unwrap(), cut);
    assert_eq!(read.vocab_size(), model.config().vocab_size);
}

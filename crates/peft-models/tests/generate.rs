//! Text generation, against what `transformers` generates with the same model.

use std::path::{Path, PathBuf};

use peft_core::device::cpu_devices;
use peft_models::{GenerateConfig, GenerateError, Llama, LlamaTokenizer, Message, StoppedBy};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<u32>,
    repetition_penalty: f64,
    ids: Vec<u32>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/generate")
}

fn greedy() -> Vec<Greedy> {
    let text = std::fs::read(golden().join("greedy.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn model() -> (Llama, LlamaTokenizer) {
    let dir = golden().join("model");
    let model = Llama::load(&dir, &cpu_devices().remove(0).1).unwrap();
    (model, LlamaTokenizer::load(dir).unwrap())
}

/// Greedy, and never ended by a token.
fn endless(tokens: usize) -> GenerateConfig {
    GenerateConfig::default()
        .with_max_new_tokens(tokens)
        .with_eos_token_id([])
}

#[test]
fn greedy_tokens_are_upstreams() {
    for (name, device) in cpu_devices() {
        for device in [device.clone(), device.clone().autodiff()] {
            let model = Llama::load(golden().join("model"), &device).unwrap();
            for case in greedy() {
                let config =
                    endless(case.ids.len()).with_repetition_penalty(case.repetition_penalty);
                let ids = model.generate_ids(&case.prompt, &config).unwrap();
                assert_eq!(ids, case.ids, "{name}, autodiff {}", device.is_autodiff());
            }
        }
    }
}

#[test]
fn a_tokenizer_that_ends_every_text_does_not_end_prompts() {
    let (model, tokenizer) = model();
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(golden().join("model")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let path = dir.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let end = json!({"SpecialToken": {"id": "<|end|>", "type_id": 0}});
    let around = &mut json["post_processor"];
    around["single"].as_array_mut().unwrap().push(end);
    around["special_tokens"]["<|end|>"] =
        json!({"id": "<|end|>", "ids": [2], "tokens": ["<|end|>"]});
    std::fs::write(&path, json.to_string()).unwrap();
    let ending = LlamaTokenizer::load(dir.path()).unwrap();
    for (prompt, ends) in [("the cat", false), ("the cat<|end|>", true)] {
        assert_eq!(ending.encode(prompt, true).unwrap().last(), Some(&2));
        let generate = |tokenizer| {
            let generated = model.generate(tokenizer, prompt, &endless(4), |_| {});
            generated.unwrap()
        };
        let (found, expected) = (generate(&ending), generate(&tokenizer));
        assert_eq!(found.ids, expected.ids);
        assert_eq!(found.prompt_tokens, expected.prompt_tokens);
        let last = tokenizer.encode(prompt, true).unwrap();
        assert_eq!(last.last() == Some(&2), ends);
    }
}

#[test]
fn pieces_make_the_text_and_the_text_is_that_of_the_tokens() {
    let (model, tokenizer) = model();
    let Greedy { prompt, ids, .. } = greedy().swap_remove(0);
    let mut pieces = Vec::new();
    let generated = model
        .generate_from(&tokenizer, &prompt, &endless(ids.len()), |piece| {
            pieces.push(piece.to_string());
        })
        .unwrap();
    assert_eq!(generated.ids, ids);
    assert_eq!(generated.prompt_tokens, prompt.len());
    assert_eq!(generated.stopped_by, StoppedBy::MaxNewTokens);
    assert_eq!(generated.text, tokenizer.decode(&ids, true).unwrap());
    assert_eq!(pieces.concat(), generated.text);
    assert!(pieces.len() > 1 && pieces.iter().all(|piece| !piece.is_empty()));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let (model, tokenizer) = model();
    let Greedy { prompt, ids, .. } = greedy().swap_remove(0);
    let whole = tokenizer.decode(&ids, true).unwrap();
    // The texts of two tokens that make whole characters.
    let pairs = (5..ids.len()).map(|at| tokenizer.decode(&ids[at - 1..=at], true).unwrap());
    let stop = pairs
        .into_iter()
        .find(|text| text.chars().count() > 1 && !text.contains('\u{fffd}') && whole.contains(text))
        .unwrap();
    let stop = stop.as_str();
    let config = endless(ids.len()).with_stop_strings([stop]);
    let mut given = String::new();
    let generated = model
        .generate_from(&tokenizer, &prompt, &config, |piece| given.push_str(piece))
        .unwrap();
    assert_eq!(generated.stopped_by, StoppedBy::StopString);
    assert_eq!(generated.text, whole[..whole.find(stop).unwrap()]);
    assert_eq!(given, generated.text);
    assert!(generated.ids.len() < ids.len());
    assert_eq!(generated.ids, ids[..generated.ids.len()]);

    let error = model.generate_ids(&prompt, &config).unwrap_err();
    assert!(error.to_string().contains("stop_strings"), "{error}");
}

#[test]
fn a_token_that_ends_texts_ends_it() {
    let (model, tokenizer) = model();
    let Greedy { prompt, ids, .. } = greedy().swap_remove(0);
    let end = ids[4];
    let until = ids.iter().position(|&id| id == end).unwrap();
    let config = endless(ids.len()).with_eos_token_id([end, 323]);
    let generated = model
        .generate_from(&tokenizer, &prompt, &config, |_| {})
        .unwrap();
    assert_eq!(generated.stopped_by, StoppedBy::Eos);
    assert_eq!(generated.ids, ids[..=until]);
    // Its own text is not part of the text.
    let text = tokenizer.decode(&ids[..until], true).unwrap();
    assert_eq!(generated.text, text);
    assert_eq!(model.generate_ids(&prompt, &config).unwrap(), generated.ids);
}

#[test]
fn the_end_of_the_context_ends_it() {
    let (model, tokenizer) = model();
    let prompt = greedy().swap_remove(0).prompt;
    let generated = model
        .generate_from(&tokenizer, &prompt, &endless(1000), |_| {})
        .unwrap();
    assert_eq!(generated.stopped_by, StoppedBy::Context);
    assert_eq!(prompt.len() + generated.ids.len(), 64);
    let full = [5; 64];
    let generated = model
        .generate_from(&tokenizer, &full, &endless(1), |_| {})
        .unwrap();
    assert_eq!(generated.stopped_by, StoppedBy::Context);
    assert!(generated.ids.is_empty());
}

#[test]
fn one_seed_gives_one_text() {
    let (model, tokenizer) = model();
    let text = |config: GenerateConfig| {
        model
            .generate(&tokenizer, "the cat", &config, |_| {})
            .unwrap()
            .text
    };
    let sampled = |seed| endless(24).with_temperature(1.5).with_seed(seed);
    assert_eq!(text(sampled(3)), text(sampled(3)));
    assert_ne!(text(sampled(3)), text(sampled(4)));
    assert_eq!(text(sampled(3).with_top_k(1)), text(endless(24)));
    assert_eq!(text(sampled(3).with_top_p(0.0)), text(endless(24)));
    assert_eq!(text(sampled(3).with_min_p(1.0)), text(endless(24)));
}

#[test]
fn the_bos_token_comes_once() {
    let (model, tokenizer) = model();
    let count = |prompt: &str| {
        let config = endless(1);
        let generated = model.generate(&tokenizer, prompt, &config, |_| {});
        generated.unwrap().prompt_tokens
    };
    let plain = tokenizer.encode("the cat", false).unwrap().len();
    assert_eq!(count("the cat"), plain + 1);
    let chat = tokenizer.chat(&[Message::user("the cat")]).unwrap();
    let ids = tokenizer.encode(&chat, false).unwrap();
    assert_eq!((ids[0], count(&chat)), (0, ids.len()));
    // No prompt at all is the token alone.
    let ids = model.generate_ids(&[], &endless(8)).unwrap();
    assert_eq!(ids, model.generate_ids(&[0], &endless(8)).unwrap());
}

#[test]
fn prompts_and_settings_that_cannot_be_are_refused() {
    let (model, _) = model();
    let refusal = |prompt: &[u32], config: GenerateConfig| -> GenerateError {
        model.generate_ids(prompt, &config).unwrap_err()
    };
    let error = refusal(&[5; 65], endless(1)).to_string();
    assert!(error.contains("65") && error.contains("64"), "{error}");
    let error = refusal(&[3, 324], endless(1)).to_string();
    assert!(
        error.contains("token 1") && error.contains("id 324"),
        "{error}"
    );
    let error = refusal(&[3], endless(1).with_temperature(0.0));
    assert!(matches!(
        error,
        GenerateError::Setting {
            setting: "temperature",
            ..
        }
    ));
}

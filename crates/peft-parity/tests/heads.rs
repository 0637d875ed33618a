//! Heads beside adapters, as AdapterHub's `adapters` 1.3 saves them: scores of tokens, answers and choices. Its folders are
//! read and written again, and a head that was trained here is written as the library writes one of its own.

#[path = "common/tensors.rs"]
mod tensors;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft::additive::BottleneckConfig;
use peft_core::{PeftModule, checkpoint};
use peft_models::{Bert, BertClassifier, BertTokenClassifier, Pooling};
use serde_json::{Value, json};

use tensors::{GradientsAsValues, read};

const BASE: &str = "../peft-models/tests/golden/bert/base";

fn folder(name: &str) -> PathBuf {
    Path::new("tests/golden/pickled").join(name)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What a model reads.
type Inputs<const D: usize> = (Tensor<D, Int>, Tensor<D, Bool>);

fn close(what: &str, ours: &TensorData, theirs: &TensorData) {
    assert_eq!(ours.shape(), theirs.shape(), "{what}");
    let distance = peft_testing::farthest(ours.iter::<f32>(), theirs.iter::<f32>());
    assert!(distance < 1e-5, "{what}: {distance}");
}

/// Loads a folder, holds outputs and the head's gradients to upstream's, and writes and reads it again.
fn check<M: PeftModule, const I: usize, const O: usize>(
    (folder_name, name): (&str, &str),
    load: impl Fn(&Device) -> M,
    run: impl Fn(&M, Inputs<I>) -> Tensor<O>,
) {
    let dir = folder(folder_name);
    let io = read(dir.join("io.safetensors"));
    for (_, device) in peft_core::device::cpu_devices() {
        let output = |model: &M, device: &Device| {
            let whole = |key: &str| Tensor::<I, Int>::from_data(io[key].clone(), device);
            run(
                model,
                (whole("input_ids"), whole("attention_mask").equal_elem(0)),
            )
        };
        let autodiff = device.clone().autodiff();
        let base = load(&autodiff);
        let model = base.load_adapter(name, &dir, &peft::methods()).unwrap();
        let found = output(&model.valid(), &device).into_data();
        close(folder_name, &found, &io["output"]);

        let scores = output(&model, &autodiff);
        let gradients = (scores.clone() * scores).mean().backward();
        let graded = model.clone().map(&mut GradientsAsValues(&gradients));
        let written = tempfile::tempdir().unwrap();
        graded.save_adapter(name, written.path()).unwrap();
        let of_head = read(written.path().join("model_head.safetensors"));
        for (key, data) in &of_head {
            close(key, data, &io[&format!("grad.{key}")]);
        }
        let theirs = io.keys().filter(|key| key.starts_with("grad.")).count();
        assert_eq!(of_head.len(), theirs, "{folder_name}");

        model.save_adapter(name, written.path()).unwrap();
        let head = "head_config.json";
        assert_eq!(
            json_of(&written.path().join(head)),
            json_of(&dir.join(head)),
            "{folder_name}"
        );
        let again = base
            .load_adapter("again", written.path(), &peft::methods())
            .unwrap();
        let again = output(&again.valid(), &device).into_data();
        assert_eq!(again, found, "{folder_name}");
    }
}

fn encoder(device: &Device) -> Bert {
    Bert::load(BASE, device).unwrap()
}

fn tokens(device: &Device) -> BertTokenClassifier {
    BertTokenClassifier::new_head(encoder(device), 3, 0.0, device).unwrap()
}

fn answers(device: &Device) -> BertTokenClassifier {
    BertTokenClassifier::new_answers(encoder(device), device)
}

fn choices(device: &Device) -> BertClassifier {
    BertClassifier::new_head(encoder(device), 1, Pooling::Cls, 0.0, device).unwrap()
}

#[test]
fn heads_of_tokens_are_upstreams() {
    for case in [("static_tokens", "a"), ("tokens", "d")] {
        check(case, tokens, |model, (ids, padding): Inputs<2>| {
            model.forward(ids, Some(padding))
        });
    }
}

#[test]
fn heads_of_answers_are_upstreams() {
    for case in [("static_answers", "a"), ("answers", "e")] {
        check(case, answers, |model, (ids, padding): Inputs<2>| {
            model.forward(ids, Some(padding))
        });
    }
}

#[test]
fn heads_of_choices_are_upstreams() {
    for case in [("static_choices", "a"), ("choices", "f")] {
        check(case, choices, |model, (ids, padding): Inputs<3>| {
            model.choices(ids, Some(padding))
        });
    }
}

/// Why a folder's adapter is refused.
fn refusal<M: PeftModule>(base: &M, folder_name: &str, name: &str) -> String {
    let loaded = base.load_adapter(name, folder(folder_name), &peft::methods());
    loaded.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_head_of_another_task_is_refused() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    for (error, words) in [
        (
            refusal(&tokens(device), "answers", "e"),
            ["tagging", "question_answering"],
        ),
        (
            refusal(&answers(device), "tokens", "d"),
            ["question_answering", "tagging"],
        ),
        (
            refusal(&choices(device), "tokens", "d"),
            ["classification", "tagging"],
        ),
        (
            refusal(&tokens(device), "static", "a"),
            ["BertForSequenceClassification", "ForTokenClassification"],
        ),
        (
            refusal(&answers(device), "static_tokens", "a"),
            ["BertForTokenClassification", "ForQuestionAnswering"],
        ),
    ] {
        for word in words.iter().chain(&["head_config.json"]) {
            assert!(error.contains(word), "no {word} in: {error}");
        }
    }
}

/// The library reads a head from files of its own, and not from the adapter's.
#[test]
fn a_head_that_was_trained_here_has_files_of_its_own() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = answers(device);
    let by_task = BottleneckConfig::pfeiffer().with_task_type("QUESTION_ANS");
    let by_name = BottleneckConfig::pfeiffer().with_modules_to_save(["qa_outputs"]);
    for method in [by_task, by_name] {
        let model = base.attach("x", &method).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter("x", dir.path()).unwrap();
        let head = json_of(&dir.path().join("head_config.json"));
        let expected = json!({
            "config": null, "hidden_size": 32, "model_class": "BertForQuestionAnswering", "model_name": "",
            "model_type": "bert", "name": null, "num_labels": 2, "version": "adapters.1.3.0",
        });
        assert_eq!(head, expected);
        let keys =
            |file: &str| -> Vec<String> { read(dir.path().join(file)).into_keys().collect() };
        assert_eq!(
            keys("model_head.safetensors"),
            ["qa_outputs.bias", "qa_outputs.weight"]
        );
        let others = keys("adapter.safetensors");
        assert!(
            others.iter().all(|key| key.starts_with("bert.")),
            "{others:?}"
        );
        let loaded = base
            .load_adapter("y", dir.path(), &peft::methods())
            .unwrap();
        assert_eq!(loaded.counts().trainable, model.counts().trainable);
        let again = tempfile::tempdir().unwrap();
        loaded.save_adapter("y", again.path()).unwrap();
        let tensors =
            |dir: &Path| checkpoint::read_tensors(&dir.join("model_head.safetensors")).unwrap();
        assert_eq!(tensors(again.path()), tensors(dir.path()));
    }
}

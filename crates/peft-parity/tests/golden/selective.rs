//! `LayerNorm` tuning, trainable tokens and `SHiRA` against Hugging Face PEFT 0.21.2: its checkpoints, outputs, merged
//! outputs, gradients.

use std::path::Path;

use peft_core::PeftModule;
use peft_core::checkpoint::{CONFIG_FILE, MODEL_FILE};
use peft_models::{Bert, Llama};
use peft_parity::golden;
use peft_selective::METHODS;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{BERT, LLAMA, LLAMA_TIED};

const CASES: &str = "../peft-selective/tests/golden";
const BERT_MORE: &str = "../peft-additive/tests/golden/bert_more/base";
const BERT_SEQ_CLS: &str = "../peft-soft-prompt/tests/golden/bert_seq_cls/base";

#[test]
fn norms_are_upstreams_with_and_without_biases_and_with_a_head() {
    let cases = Path::new(CASES);
    golden::check(Path::new(BERT), cases, &["ln_tuning"], METHODS);
    golden::check(
        Path::new(LLAMA),
        &cases.join("llama"),
        &["ln_tuning"],
        METHODS,
    );
    let more = cases.join("llama_more");
    golden::check(
        Path::new(LLAMA_TIED),
        &more,
        &["ln_tuning_default"],
        METHODS,
    );
    let with_head = cases.join("bert_seq_cls");
    golden::check(Path::new(BERT_SEQ_CLS), &with_head, &["ln_tuning"], METHODS);
}

#[test]
fn trained_rows_are_upstreams_with_and_without_a_tied_head() {
    let cases = Path::new(CASES);
    let more = cases.join("bert_more");
    golden::check(Path::new(BERT_MORE), &more, &["trainable_tokens"], METHODS);
    let tied = cases.join("llama");
    golden::check(Path::new(LLAMA), &tied, &["trainable_tokens"], METHODS);
    let tied = cases.join("llama_more");
    golden::check(
        Path::new(LLAMA_TIED),
        &tied,
        &["trainable_tokens_tied"],
        METHODS,
    );
}

#[test]
fn sparse_changes_are_upstreams() {
    let cases = Path::new(CASES);
    golden::check(Path::new(BERT), cases, &["shira"], METHODS);
    golden::check(Path::new(LLAMA), &cases.join("llama"), &["shira"], METHODS);
}

#[test]
fn the_largest_and_the_smallest_are_upstreams_with_and_without_a_low_rank_change() {
    let more = Path::new(CASES).join("bert_more");
    let cases = ["supertuning", "supertuning_bottom", "supertuning_supra"];
    golden::check(Path::new(BERT_MORE), &more, &cases, METHODS);
    let more = Path::new(CASES).join("llama_more");
    golden::check(
        Path::new(LLAMA_TIED),
        &more,
        &["supertuning", "supertuning_supra"],
        METHODS,
    );
}

/// Keys, number formats, shapes and bytes of a file.
fn tensors(dir: &Path) -> Vec<(String, String, Vec<u8>)> {
    let bytes = std::fs::read(dir.join(MODEL_FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(key, view)| {
            let kind = format!("{:?} {:?}", view.dtype(), view.shape());
            (key.to_string(), kind, view.data().to_vec())
        })
        .collect();
    tensors.sort();
    tensors
}

fn is_written_again<M: PeftModule>(base: &M, case: &str) {
    let case = Path::new(CASES).join(case);
    let model = base.load_adapter("a", &case, METHODS).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path()).unwrap();
    assert_eq!(tensors(dir.path()), tensors(&case), "{}", case.display());
    let read = |dir: &Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(dir.join(CONFIG_FILE)).unwrap()).unwrap()
    };
    let (theirs, ours) = (read(&case), read(dir.path()));
    let (theirs, ours) = (theirs.as_object().unwrap(), ours.as_object().unwrap());
    for (field, value) in theirs {
        assert_eq!(ours.get(field), Some(value), "{}: {field}", case.display());
    }
}

#[test]
fn what_was_read_is_written_again_byte_by_byte() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let bert = Bert::load(BERT, device).unwrap();
    for case in ["ln_tuning", "shira"] {
        is_written_again(&bert, case);
    }
    let bert = Bert::load(BERT_MORE, device).unwrap();
    for case in [
        "bert_more/trainable_tokens",
        "bert_more/supertuning",
        "bert_more/supertuning_bottom",
        "bert_more/supertuning_supra",
    ] {
        is_written_again(&bert, case);
    }
    let llama = Llama::load(LLAMA, device).unwrap();
    for case in ["llama/ln_tuning", "llama/shira", "llama/trainable_tokens"] {
        is_written_again(&llama, case);
    }
    let llama = Llama::load(LLAMA_TIED, device).unwrap();
    for case in [
        "llama_more/ln_tuning_default",
        "llama_more/trainable_tokens_tied",
    ] {
        is_written_again(&llama, case);
    }
}

//! Against Hugging Face PEFT 0.21.2: its checkpoints, outputs and gradients. AdapterHub's prefixes against `adapters` 1.3:
//! checkpoints and outputs.

use std::path::Path;

use peft_parity::golden;
use peft_soft_prompt::METHODS;

use crate::{BERT, LLAMA, LLAMA_TIED};

const CASES: &[&str] = &[
    "prompt_tuning",
    "prefix_tuning",
    "prefix_tuning_projection",
    "p_tuning_mlp",
    "p_tuning_lstm",
];

#[test]
fn checkpoints_compute_what_upstream_computes() {
    golden::check(
        Path::new(BERT),
        Path::new("../peft-soft-prompt/tests/golden"),
        CASES,
        METHODS,
    );
}

#[test]
fn checkpoints_of_a_llama_compute_what_upstream_computes() {
    golden::check(
        Path::new(LLAMA),
        Path::new("../peft-soft-prompt/tests/golden/llama"),
        &[CASES, &["cpt"]].concat(),
        METHODS,
    );
}

#[test]
fn checkpoints_with_tasks_compute_what_upstream_computes() {
    golden::check(
        Path::new("../peft-reparameterization/tests/golden/llama_tied/base"),
        Path::new("../peft-soft-prompt/tests/golden/llama_tied"),
        &["multitask_prompt_tuning"],
        METHODS,
    );
}

#[test]
fn checkpoints_beside_a_head_compute_what_upstream_computes() {
    golden::check(
        Path::new("../peft-soft-prompt/tests/golden/bert_seq_cls/base"),
        Path::new("../peft-soft-prompt/tests/golden/bert_seq_cls"),
        &[
            "prompt_tuning",
            "prefix_tuning",
            "p_tuning_mlp",
            "p_tuning_lstm",
        ],
        METHODS,
    );
}

#[test]
fn a_cartridge_is_upstreams() {
    let cases = Path::new("../peft-soft-prompt/tests/golden/llama_tied");
    golden::check(Path::new(LLAMA_TIED), cases, &["cartridge"], METHODS);
}

#[test]
fn prompts_behind_a_gate_are_upstreams() {
    let cases = Path::new("../peft-soft-prompt/tests/golden/llama");
    golden::check(Path::new(LLAMA), cases, &["adaption_prompt"], METHODS);
}

#[test]
fn adapterhubs_prefixes_are_upstreams() {
    let cases = Path::new("../peft-soft-prompt/tests/golden/adapterhub");
    let names = ["prefix_tuning", "prefix_tuning_flat", "prefix_tuning_leaky"];
    golden::check(Path::new(BERT), cases, &names, METHODS);
}

//! Against Hugging Face PEFT 0.21.2: its checkpoints, outputs and gradients.

use std::path::Path;

use peft_parity::golden;
use peft_soft_prompt::METHODS;

use crate::{BERT, LLAMA};

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
        CASES,
        METHODS,
    );
}

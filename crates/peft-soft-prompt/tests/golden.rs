//! Prompt tuning against Hugging Face PEFT 0.21.2: its checkpoint, outputs and gradients.

use std::path::Path;

use peft_conformance::golden;
use peft_soft_prompt::METHODS;

#[test]
fn checkpoints_compute_what_upstream_computes() {
    golden::check(
        Path::new("../peft-models/tests/golden/bert/base"),
        Path::new("tests/golden"),
        &["prompt_tuning"],
        METHODS,
    );
}

#[test]
fn checkpoints_of_a_llama_compute_what_upstream_computes() {
    golden::check(
        Path::new("../peft-models/tests/golden/llama/base"),
        Path::new("tests/golden/llama"),
        &["prompt_tuning"],
        METHODS,
    );
}

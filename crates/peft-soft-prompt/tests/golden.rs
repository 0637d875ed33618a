//! Against Hugging Face PEFT 0.21.2: its checkpoints, outputs and gradients.

use std::path::Path;

use peft_conformance::golden;
use peft_soft_prompt::METHODS;

const CASES: &[&str] = &["prompt_tuning", "prefix_tuning", "prefix_tuning_projection"];

#[test]
fn checkpoints_compute_what_upstream_computes() {
    golden::check(
        Path::new("../peft-models/tests/golden/bert/base"),
        Path::new("tests/golden"),
        CASES,
        METHODS,
    );
}

#[test]
fn checkpoints_of_a_llama_compute_what_upstream_computes() {
    golden::check(
        Path::new("../peft-models/tests/golden/llama/base"),
        Path::new("tests/golden/llama"),
        CASES,
        METHODS,
    );
}

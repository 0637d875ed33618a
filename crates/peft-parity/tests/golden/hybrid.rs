//! Unions against AdapterHub's `adapters` 1.3: checkpoints, outputs, gradients.

use std::path::Path;

use peft_parity::golden;

use crate::BERT;

#[test]
fn checkpoints_compute_what_upstream_computes() {
    let cases = Path::new("../peft-hybrid/tests/golden");
    golden::check(
        Path::new(BERT),
        cases,
        &["mam", "unipelt"],
        &peft::methods(),
    );
}

//! Checkpoints of Hugging Face PEFT in mixed precision: as far from upstream's `f32` as bfloat16 takes one. The setting
//! is the whole process's, so this test has one of its own.

use std::path::Path;

use peft_core::device::device;
use peft_parity::golden::{Tolerance, measure, tolerance};
use peft_reparameterization::METHODS;

const CASES: &str = "../peft-reparameterization/tests/golden";

#[test]
fn checkpoints_compute_what_upstream_computes_to_8_bits() {
    let device = device("flex:bf16").unwrap();
    // A number of 8 bits is off by 1/256 at most, and a few layers lie behind each other.
    let bound = Tolerance {
        output: 2e-2,
        gradients: 5e-2,
        excused: 0.0,
    };
    let mut rounded = false;
    for (base, cases) in [
        (
            "../peft-models/tests/golden/bert/base",
            &[
                "lora",
                "lora_all_linear",
                "lora_bias",
                "lora_dora",
                "hira",
                "vera",
            ][..],
        ),
        (
            "../peft-models/tests/golden/llama/base",
            &["llama/lora", "llama/lora_all_linear"][..],
        ),
    ] {
        for name in cases {
            let case = Path::new(CASES).join(name);
            let measured = measure(Path::new(base), &case, METHODS, &device)
                .unwrap_or_else(|problem| panic!("{name}: {problem}"));
            println!("{name}: {measured:?}");
            assert!(
                measured.fits(bound),
                "{name}: {measured:?}, wanted {bound:?}"
            );
            rounded |= !measured.fits(tolerance(&case));
        }
    }
    assert!(rounded, "nothing was rounded");
}

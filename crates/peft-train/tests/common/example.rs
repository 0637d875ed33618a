//! The walk-through's program on a tiny model.

use std::path::{Path, PathBuf};

/// The example, which `cargo test` builds beside the tests.
pub(crate) fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap();
    let example = folder.join("examples/finetune_llama");
    assert!(
        example.exists(),
        "{} is not there: `cargo test` of the whole crate builds it",
        example.display()
    );
    example
}

/// A folder with a tiny Llama and its tokenizer.
pub(crate) fn model() -> PathBuf {
    let model = "../peft-models/tests/golden/generate/model";
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
    model.canonicalize().unwrap()
}

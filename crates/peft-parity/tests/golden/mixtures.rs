//! Mixtures of low-rank changes against Hugging Face PEFT 0.21.2: Lily, Poly, X-LoRA, Arrow with and without GenKnowSub.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use peft_core::PeftModule;
use peft_models::Llama;
use peft_parity::golden;
use peft_reparameterization::{METHODS, XLora};
use safetensors::SafeTensors;

const CASES: &str = "../peft-reparameterization/tests/golden/llama_tied";

#[test]
fn mixtures_compute_what_upstream_computes() {
    let cases = [
        "lily",
        "poly",
        "arrow",
        "arrow_genknowsub",
        "xlora",
        "xlora_layerwise_topk",
    ];
    let dir = Path::new(CASES);
    golden::check(&dir.join("base"), dir, &cases, METHODS);
}

fn keys(file: &Path) -> BTreeSet<String> {
    let bytes = fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.names().into_iter().map(str::to_string).collect()
}

/// Upstream's file has a copy of what layers share for each of them.
#[test]
fn shared_tensors_are_written_as_upstream_writes_them() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let dir = Path::new(CASES);
    let base = Llama::load(dir.join("base"), device).unwrap();
    for case in ["lily", "poly"] {
        let folder = dir.join(case);
        let model = base.load_adapter("a", &folder, METHODS).unwrap();
        let written = tempfile::tempdir().unwrap();
        model.save_adapter("a", written.path()).unwrap();
        let file = "adapter_model.safetensors";
        assert_eq!(keys(&written.path().join(file)), keys(&folder.join(file)));
        let again = base.load_adapter("a", written.path(), METHODS).unwrap();
        assert_eq!(again.counts(), model.counts());
    }
}

#[test]
fn a_folder_of_x_lora_is_written_and_read_again() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let case = Path::new(CASES).join("xlora_layerwise_topk");
    let base = Llama::load(Path::new(CASES).join("base"), device).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // The experts are folders in the case's.
    for entry in fs::read_dir(&case).unwrap().flatten() {
        if entry.path().is_dir() {
            let to = dir.path().join(entry.file_name());
            fs::create_dir(&to).unwrap();
            for file in fs::read_dir(entry.path()).unwrap().flatten() {
                fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
    }
    fs::copy(
        case.join("adapter_config.json"),
        dir.path().join("adapter_config.json"),
    )
    .unwrap();
    let copy = |from: &str| {
        fs::copy(
            case.join(from),
            dir.path().join("adapter_model.safetensors"),
        )
        .unwrap();
    };
    // Upstream's own file has nothing in it.
    copy("adapter_model.safetensors");
    let error = XLora::load(&base, dir.path(), METHODS, 32)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("internal_xlora_classifier") && error.contains("is missing"),
        "{error}"
    );
    copy("encoder.safetensors");
    let xlora = XLora::load(&base, dir.path(), METHODS, 32).unwrap();
    let written = tempfile::tempdir().unwrap();
    xlora.save(written.path()).unwrap();
    let theirs = keys(&case.join("encoder.safetensors"));
    assert_eq!(
        keys(&written.path().join("adapter_model.safetensors")),
        theirs
    );
    let again = XLora::load(&base, written.path(), METHODS, 32).unwrap();
    assert_eq!(again.classifier_tensors(), xlora.classifier_tensors());
    assert_eq!(again.experts(), ["0", "1", "2"]);
    let wrong = XLora::load(&base, written.path(), METHODS, 48)
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("hidden_size"), "{wrong}");
}

//! Bottleneck adapters against AdapterHub's `adapters` 1.3, IA³ against Hugging Face PEFT 0.21.2: their checkpoints and
//! outputs and gradients, and for IA³ merged outputs.

use std::path::Path;

use peft_additive::METHODS;
use peft_core::PeftModule;
use peft_models::Bert;
use peft_parity::golden;

use crate::{BERT, LLAMA};

const CASES: &str = "../peft-additive/tests/golden";

#[test]
fn checkpoints_compute_what_upstream_computes() {
    let cases = [
        "seq_bn",
        "double_seq_bn",
        "composition_stack",
        "composition_average",
        "composition_fuse",
    ];
    golden::check(Path::new(BERT), Path::new(CASES), &cases, METHODS);
}

#[test]
fn ia3_is_upstreams_with_scaled_biases_and_without_biases() {
    golden::check(Path::new(BERT), Path::new(CASES), &["ia3"], METHODS);
    let cases = Path::new(CASES).join("llama");
    golden::check(Path::new(LLAMA), &cases, &["ia3"], METHODS);
}

#[test]
fn what_is_written_has_upstreams_names_and_fields() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT, device).unwrap();
    for case in ["seq_bn", "double_seq_bn"] {
        let case = Path::new(CASES).join(case);
        let name = case.file_name().unwrap().to_str().unwrap();
        let model = base.load_adapter(name, &case, METHODS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(name, dir.path()).unwrap();
        let keys = |dir: &Path| {
            let bytes = std::fs::read(dir.join("adapter.safetensors")).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut keys: Vec<_> = file.names().into_iter().map(ToString::to_string).collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(dir.path()), keys(&case));
        let read = |dir: &Path| {
            let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        let (theirs, ours) = (read(&case), read(dir.path()));
        for (field, value) in theirs["config"].as_object().unwrap() {
            let written = &ours["config"][field];
            let same = value
                .as_f64()
                .map_or(written == value, |number| written.as_f64() == Some(number));
            assert!(same, "{field}: {written} for {value}");
        }
        assert_eq!(ours["version"], theirs["version"]);
        assert_eq!(ours["hidden_size"], theirs["hidden_size"]);
    }
}

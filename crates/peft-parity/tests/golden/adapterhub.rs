//! Files in AdapterHub's layout of methods that have Hugging Face PEFT's, too: against `adapters` 1.3, and written again.

use std::collections::BTreeMap;
use std::path::Path;

use peft_core::PeftModule;
use peft_core::method::MethodInfo;
use peft_models::Bert;
use peft_parity::golden;
use serde_json::Value;

use crate::BERT;

const LORA: &str = "../peft-reparameterization/tests/golden/adapterhub";
const PROMPT: &str = "../peft-soft-prompt/tests/golden/adapterhub";

const LORA_CASES: &[&str] = &[
    "lora",
    "lora_everywhere",
    "lora_gating",
    "lora_bert",
    "dora",
    "dora_gating",
    "vera",
    "vera_ones",
    "vera_saved",
    "vera_zero",
    "dvora",
    "mtl_lora",
    "mtl_lora_gating",
];

const PROMPT_CASES: &[&str] = &["prompt_tuning_eager", "prompt_bos_eager"];

fn cases() -> Vec<(std::path::PathBuf, &'static [&'static MethodInfo])> {
    let lora = LORA_CASES.iter().map(|case| Path::new(LORA).join(case));
    let lora = lora.map(|case| (case, peft_reparameterization::METHODS));
    let prompt = PROMPT_CASES.iter().map(|case| Path::new(PROMPT).join(case));
    let prompt = prompt.map(|case| (case, peft_soft_prompt::METHODS));
    lora.chain(prompt).collect()
}

#[test]
fn lora_computes_what_upstream_computes() {
    let methods = peft_reparameterization::METHODS;
    golden::check(Path::new(BERT), Path::new(LORA), LORA_CASES, methods);
}

#[test]
fn prompt_tuning_computes_what_upstream_computes() {
    let methods = peft_soft_prompt::METHODS;
    golden::check(Path::new(BERT), Path::new(PROMPT), PROMPT_CASES, methods);
}

/// Of the layouts whose trained matrices are no factors of LoRA's: a file without what all layers share is refused where
/// its configuration does not say it.
#[test]
fn what_adapterhub_loses_of_vera_is_refused() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT, device).unwrap();
    let case = Path::new(LORA).join("vera");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        case.join("adapter.safetensors"),
        dir.path().join("adapter.safetensors"),
    )
    .unwrap();
    let mut without_seed = config(&case);
    without_seed["config"]["init_weights_seed"] = Value::Null;
    std::fs::write(
        dir.path().join("adapter_config.json"),
        without_seed.to_string(),
    )
    .unwrap();
    let methods = peft_reparameterization::METHODS;
    let refused = base.load_adapter("vera", dir.path(), methods).unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("shared_parameters"), "{refused}");
}

/// Tensors by key, with their bytes.
fn tensors(file: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(file).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let of = |(key, view): (&str, safetensors::tensor::TensorView<'_>)| {
        (
            key.to_string(),
            (view.shape().to_vec(), view.data().to_vec()),
        )
    };
    file.iter().map(of).collect()
}

fn config(dir: &Path) -> Value {
    let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn what_is_written_is_what_was_read() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT, device).unwrap();
    for (case, methods) in cases() {
        let name = case.file_name().unwrap().to_str().unwrap();
        let model = base.load_adapter(name, &case, methods).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(name, dir.path()).unwrap();
        let file = "adapter.safetensors";
        assert_eq!(
            tensors(&dir.path().join(file)),
            tensors(&case.join(file)),
            "{name}"
        );
        let ours = config(dir.path());
        for (field, value) in config(&case).as_object().unwrap() {
            if field == "config" {
                let written = ours[field].as_object().unwrap();
                let fields = value.as_object().unwrap();
                assert_eq!(written.len(), fields.len(), "{name}: {written:?}");
                for (field, value) in fields {
                    let written = &written[field];
                    let same = value
                        .as_f64()
                        .map_or(written == value, |number| written.as_f64() == Some(number));
                    assert!(same, "{name}, {field}: {written} for {value}");
                }
            } else {
                assert_eq!(&ours[field], value, "{name}, {field}");
            }
        }
    }
}

/// AdapterHub's models with a head have the base model below `bert`, and their files, too.
#[test]
fn files_of_a_model_with_a_head_are_read() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT, device).unwrap();
    for (case, methods) in cases() {
        let name = case.file_name().unwrap().to_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let copied = config(&case).to_string();
        std::fs::write(dir.path().join("adapter_config.json"), copied).unwrap();
        let bytes = std::fs::read(case.join("adapter.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let below = file.iter().map(|(key, view)| (format!("bert.{key}"), view));
        let path = dir.path().join("adapter.safetensors");
        safetensors::serialize_to_file(below, None, &path).unwrap();
        let model = base.load_adapter("x", dir.path(), methods).unwrap();
        let again = tempfile::tempdir().unwrap();
        model.save_adapter("x", again.path()).unwrap();
        let written = tensors(&again.path().join("adapter.safetensors"));
        let expected = tensors(&case.join("adapter.safetensors"));
        let expected = expected
            .into_iter()
            .map(|(key, value)| (key.replace(&format!(".{name}."), ".x."), value));
        assert_eq!(written, expected.collect(), "{name}");
    }
}

//! Bottleneck adapters and ReFT against AdapterHub's `adapters` 1.3, IA³, RoAd and BEFT against Hugging Face PEFT 0.21.2:
//! their checkpoints, outputs and gradients, and for the latter three merged outputs.

use std::path::Path;

use peft_additive::METHODS;
use peft_core::PeftModule;
use peft_models::Bert;
use peft_parity::golden;
use serde_json::Value;

use crate::{BERT, LLAMA};

const CASES: &str = "../peft-additive/tests/golden";
/// The base of the Llama of `generate_hf_more.py`.
const MORE_LLAMA: &str = "../peft-reparameterization/tests/golden/llama_tied/base";

/// Every field of upstream's `BnConfig` is on in one of these, but for those that act while training only, and `glow`,
/// which upstream cannot run.
const BOTTLENECKS: &[&str] = &[
    "seq_bn",
    "double_seq_bn",
    "par_bn",
    "scaled_par_bn",
    "adapter_plus",
    "adapter_plus_end",
    "bn_norms",
    "bn_residuals",
    "bn_parallel",
    "compacter",
    "compacter_pp",
    "phm_own",
    "phm_shared",
    "seq_bn_inv",
];

#[test]
fn checkpoints_compute_what_upstream_computes() {
    golden::check(Path::new(BERT), Path::new(CASES), BOTTLENECKS, METHODS);
    let composed = [
        "composition_stack",
        "composition_average",
        "composition_fuse",
    ];
    golden::check(Path::new(BERT), Path::new(CASES), &composed, METHODS);
}

/// Upstream's file of a model without a head lacks the rule that all projections share.
#[test]
fn a_rule_that_upstream_forgot_is_found_from_its_output() {
    let case = Path::new(CASES).join("compacter");
    let lacking = tempfile::tempdir().unwrap();
    let dir = lacking.path().join("compacter");
    std::fs::create_dir(&dir).unwrap();
    for file in ["adapter_config.json", "io.safetensors"] {
        std::fs::copy(case.join(file), dir.join(file)).unwrap();
    }
    let bytes = std::fs::read(case.join("adapter.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = file
        .iter()
        .filter(|(key, _)| !key.starts_with("shared_parameters."));
    let without = safetensors::serialize(kept, None).unwrap();
    std::fs::write(dir.join("adapter.safetensors"), without).unwrap();
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT, device).unwrap();
    // A reader that is no test refuses the file.
    let refused = base.load_adapter("compacter", &dir, METHODS).unwrap_err();
    assert!(refused.to_string().contains("phm_rule"), "{refused}");
    let measured = golden::measure(Path::new(BERT), &dir, METHODS, device).unwrap();
    assert_eq!(measured.lost, 64);
    assert!(measured.output < 2e-5, "{measured:?}");
    assert_eq!(measured.expected, Some(measured.trainable));
}

#[test]
fn ia3_is_upstreams_with_scaled_biases_and_without_biases() {
    let cases = ["ia3", "adapterhub_ia3", "ia3_gating", "ia3_alpha"];
    golden::check(Path::new(BERT), Path::new(CASES), &cases, METHODS);
    let cases = Path::new(CASES).join("llama");
    golden::check(Path::new(LLAMA), &cases, &["ia3"], METHODS);
}

#[test]
fn road_is_upstreams_in_all_variants() {
    let cases = ["road", "road_2", "road_4"];
    golden::check(Path::new(BERT), Path::new(CASES), &cases, METHODS);
    let cases = Path::new(CASES).join("llama");
    golden::check(Path::new(LLAMA), &cases, &["road"], METHODS);
}

#[test]
fn beft_and_ia3_on_upstreams_default_layers_are_upstreams() {
    let cases = Path::new(CASES).join("bert_more");
    golden::check(
        &cases.join("base"),
        &cases,
        &["beft", "ia3_default"],
        METHODS,
    );
    let cases = Path::new(CASES).join("llama_more");
    golden::check(
        Path::new(MORE_LLAMA),
        &cases,
        &["beft", "ia3_default"],
        METHODS,
    );
}

#[test]
fn shadow_networks_are_upstreams() {
    let cases = Path::new(CASES).join("llama_more");
    let names = [
        "shadow",
        "shadow_shared",
        "shadow_first_block",
        "shadow_last_block",
    ];
    golden::check(Path::new(MORE_LLAMA), &cases, &names, METHODS);
}

#[test]
fn reft_is_upstreams() {
    let cases = [
        "loreft",
        "noreft",
        "direft",
        "loreft_tied",
        "noreft_both",
        "direft_suffix",
    ];
    golden::check(Path::new(BERT), Path::new(CASES), &cases, METHODS);
}

/// Whether two values are the same, and numbers as numbers: 8 is 8.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Object(a), Value::Object(b)) => {
            let equal =
                |(key, value): (&String, &Value)| b.get(key).is_some_and(|b| same(value, b));
            a.len() == b.len() && a.iter().all(equal)
        }
        (a, b) => a == b,
    }
}

#[test]
fn what_is_written_has_upstreams_names_and_fields() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT, device).unwrap();
    let others = [
        "loreft",
        "noreft",
        "direft",
        "adapterhub_ia3",
        "ia3_gating",
        "ia3_alpha",
    ];
    for case in BOTTLENECKS.iter().chain(&others) {
        let case = Path::new(CASES).join(case);
        let read = |dir: &Path| {
            let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
            serde_json::from_str::<Value>(&text).unwrap()
        };
        let theirs = read(&case);
        let name = theirs["name"].as_str().unwrap();
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
        let ours = read(dir.path());
        for (field, value) in theirs["config"].as_object().unwrap() {
            let written = &ours["config"][field];
            let same = same(written, value);
            assert!(same, "{field}: {written} for {value}");
        }
        assert_eq!(ours["version"], theirs["version"]);
        assert_eq!(ours["hidden_size"], theirs["hidden_size"]);
    }
}

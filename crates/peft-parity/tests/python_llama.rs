//! Adapters of a Llama, and whole models with them merged, are read by Python: Hugging Face PEFT and
//! `transformers` compute the logits that were computed here.
//!
//! Runs where `PEFT_PYTHON` names a Python with `torch`, `transformers` and `peft`. `PEFT_LLAMA` may name a model
//! (a folder, or a GGUF file) to do it with, in the place of the tiny one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::module::Module as _;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::core::{ConfigExt as _, Method, PeftModule as _};
use peft::reparameterization::{LohaConfig, LoraConfig, VeraConfig};
use peft::soft_prompt::PromptTuningConfig;
use peft_models::{Llama, LmBatch};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

const BASE: &str = "../peft-models/tests/golden/llama/base";

fn cases() -> Vec<(&'static str, Box<dyn Method>)> {
    let lora = || LoraConfig::new(4).with_alpha(10.0);
    vec![
        ("lora", Box::new(lora().with_targets(["q_proj", "v_proj"]))),
        ("lora-all-linear", Box::new(lora())),
        ("lora-dora", Box::new(lora().with_dora(true))),
        ("lora-bias-for-b", Box::new(lora().with_lora_bias(true))),
        (
            "lora-embedding",
            Box::new(lora().with_targets(["embed_tokens", "v_proj"])),
        ),
        (
            "lora-token-rows",
            Box::new(lora().with_token_rows([4, 8, 15])),
        ),
        (
            "loha",
            Box::new(LohaConfig::new(4).with_targets(["q_proj", "o_proj"])),
        ),
        (
            "vera",
            Box::new(VeraConfig::new(16).with_targets(["q_proj"])),
        ),
        (
            "prompt-tuning",
            Box::new(PromptTuningConfig::new(5).with_task_type("CAUSAL_LM")),
        ),
    ]
}

fn write_io(file: &Path, ids: &[u32], logits: &Tensor<3>) {
    let shape = logits.dims().to_vec();
    let bytes: Vec<u8> = logits
        .to_data()
        .iter::<f32>()
        .flat_map(f32::to_le_bytes)
        .collect();
    let ids_bytes: Vec<u8> = ids
        .iter()
        .flat_map(|id| i64::from(*id).to_le_bytes())
        .collect();
    let tensors = [
        (
            "input_ids",
            TensorView::new(Dtype::I64, vec![1, ids.len()], &ids_bytes).unwrap(),
        ),
        (
            "output",
            TensorView::new(Dtype::F32, shape, &bytes).unwrap(),
        ),
    ];
    safetensors::serialize_to_file(tensors, None, file).unwrap();
}

fn logits(model: &Llama, ids: &[u32], device: &Device) -> Tensor<3> {
    let data: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let data = TensorData::new(data, [1, ids.len()]);
    model.forward(Tensor::<2, Int>::from_data(data, device), None)
}

#[test]
fn python_computes_the_logits_that_we_computed() {
    let Some(python) = std::env::var_os("PEFT_PYTHON") else {
        println!("skipped: PEFT_PYTHON names no Python with torch, transformers and peft");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let device = peft::core::device::cpu_devices()[0].1.clone();
    let autodiff = device.clone().autodiff();
    let other = std::env::var_os("PEFT_LLAMA").map(PathBuf::from);
    let path = other.clone().unwrap_or_else(|| BASE.into());
    // Python gets the model as it is written here: a GGUF file's values in Hugging Face's layout.
    let base_folder = dir.path().join("base");
    let plain = Llama::load(&path, &device).unwrap();
    plain.export(&base_folder, None).unwrap();
    let vocabulary = plain.config().vocab_size as u32;
    drop(plain);
    let ids: Vec<u32> = (0..23).map(|i| 3 + i * i * 7 % (vocabulary - 3)).collect();
    let folder = dir.path().join("cases");
    let mut cases = cases();
    if other.is_some() {
        cases.retain(|(name, _)| ["lora-all-linear", "lora-embedding"].contains(name));
    }
    for (name, method) in &cases {
        autodiff.seed(11);
        let base = Llama::load(&path, &autodiff).unwrap();
        let before = logits(&base.valid(), &ids, &device);
        let mut model = base.attach("trained", method.as_ref()).unwrap();
        let mut optimizer = AdamConfig::new().init();
        for _ in 0..5 {
            let loss = model.loss(&LmBatch::of_text(&ids));
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-2, model, gradients);
        }
        let model = model.valid();
        let output = logits(&model, &ids, &device);
        if output.dims() == before.dims() {
            let moved: f32 = (output.clone() - before).abs().max().into_scalar();
            assert!(
                moved > 1e-3,
                "{name}: training moved logits by {moved} only"
            );
        }
        let case = folder.join(name);
        model.save_adapter("trained", case.join("adapter")).unwrap();
        // A bias that the layer does not have, and prompts, cannot be merged.
        if let Ok(merged) = model.merge_and_unload() {
            merged.export(case.join("merged"), None).unwrap();
        }
        write_io(&case.join("io.safetensors"), &ids, &output);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python_llama.py");
    let said = Command::new(python)
        .arg(script)
        .arg(&base_folder)
        .arg(&folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    let results: BTreeMap<String, Value> = text
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok())
        .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&said.stderr)));
    let mut wrong = Vec::new();
    for (name, _) in &cases {
        let result = &results[*name];
        println!("{name}: {result}");
        let near = |value: &Value| value.as_f64().is_some_and(|distance| distance < 1e-4);
        let merged = result.get("merged").is_none_or(near);
        let quiet = result["warnings"].as_array().is_some_and(Vec::is_empty);
        if !(near(&result["adapter"]) && merged && quiet) {
            wrong.push(format!("{name}: {result}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

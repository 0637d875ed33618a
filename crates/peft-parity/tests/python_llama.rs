//! Adapters of a Llama, and models with merged adapters, are read by Python: Hugging Face PEFT and
//! `transformers` compute the logits that were computed here.
//!
//! Runs where `PEFT_PYTHON` names a Python with `torch`, `transformers` and `peft`. `PEFT_LLAMA` may name a model
//! (a folder, or a GGUF file) to do it with, in the place of the tiny one.

mod common;

use std::path::PathBuf;

use burn::module::Module as _;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::python::{Python, write_io};
use peft::additive::ShadowConfig;
use peft::core::PeftModule as _;
use peft::core::method::Method;
use peft::core::nn::{ForwardContext, TaskIds};
use peft::reparameterization::{LohaConfig, LoraConfig, VeraConfig};
use peft::soft_prompt::{
    AdaptionPromptConfig, CartridgeConfig, CptConfig, MultitaskPromptTuningConfig,
    PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig,
};
use peft_models::{ExportConfig, ExportDtype, Llama, LmBatch};

const BASE: &str = "../peft-models/tests/golden/llama/base";

/// The text's task, for adapters that have several.
const TASK: usize = 1;

/// A token that is in the text once.
const INVOCATION: usize = 10;

type Case = (&'static str, Box<dyn Method>);

fn cases() -> Vec<Case> {
    let mut cases = loras();
    cases.extend(others());
    cases.extend(beside_the_model());
    cases
}

fn loras() -> Vec<Case> {
    let lora = || LoraConfig::new(4).with_alpha(10.0);
    vec![
        ("lora", Box::new(lora().with_targets(["q_proj", "v_proj"]))),
        ("lora-all-linear", Box::new(lora())),
        ("lora-dora", Box::new(lora().with_use_dora(true))),
        (
            "lora-alora",
            // Upstream looks for the invocation in language models only.
            Box::new(
                lora()
                    .with_alora_invocation_tokens([INVOCATION])
                    .with_task_type("CAUSAL_LM"),
            ),
        ),
        ("lora-bias-for-b", Box::new(lora().with_lora_bias(true))),
        (
            "lora-embedding",
            Box::new(lora().with_targets(["embed_tokens", "v_proj"])),
        ),
        (
            "lora-token-rows",
            Box::new(lora().with_trainable_token_indices([4, 8, 15])),
        ),
        (
            "lora-tied-head",
            Box::new(lora().with_targets(["q_proj", "lm_head"])),
        ),
        (
            "lora-saved-table-and-head",
            Box::new(
                lora()
                    .with_targets(["q_proj"])
                    .with_modules_to_save(["embed_tokens", "lm_head"]),
            ),
        ),
        (
            "lora-weight-tying",
            Box::new(
                lora()
                    .with_targets(["q_proj"])
                    .with_modules_to_save(["embed_tokens"])
                    .with_ensure_weight_tying(true),
            ),
        ),
    ]
}

fn others() -> Vec<Case> {
    vec![
        (
            "loha",
            Box::new(LohaConfig::new(4).with_targets(["q_proj", "o_proj"])),
        ),
        (
            "vera",
            Box::new(VeraConfig::new(16).with_targets(["q_proj"])),
        ),
    ]
}

/// Networks beside the model, and virtual tokens.
fn beside_the_model() -> Vec<Case> {
    vec![
        (
            "shadow",
            Box::new(
                ShadowConfig::new()
                    .with_shadow_hidden_size(16)
                    .with_shadow_num_attention_heads(2)
                    .with_task_type("CAUSAL_LM"),
            ),
        ),
        (
            "shadow-of-the-models-width",
            Box::new(
                ShadowConfig::new()
                    .with_shadow_num_hidden_layers(2)
                    .with_targets(["model.layers.1"])
                    .with_task_type("CAUSAL_LM"),
            ),
        ),
        (
            "prompt-tuning",
            Box::new(PromptTuningConfig::new(5).with_task_type("CAUSAL_LM")),
        ),
        (
            "cpt",
            Box::new(
                CptConfig::new([5, 17, 60, 8, 30])
                    .with_cpt_tokens_type_mask([1, 2, 2, 3, 4])
                    .with_opt_projection_epsilon(8.0),
            ),
        ),
        (
            "multitask-prompt-tuning",
            Box::new(
                MultitaskPromptTuningConfig::new(5, 3)
                    .with_num_ranks(2)
                    .with_task_type("CAUSAL_LM"),
            ),
        ),
        (
            "p-tuning",
            Box::new(PromptEncoderConfig::new(5).with_task_type("CAUSAL_LM")),
        ),
        (
            "adaption-prompt",
            Box::new(AdaptionPromptConfig::new(5, 2).with_task_type("CAUSAL_LM")),
        ),
        (
            "cartridge",
            Box::new(CartridgeConfig::new(5).with_task_type("CAUSAL_LM")),
        ),
        (
            "prefix-tuning",
            Box::new(PrefixTuningConfig::new(5).with_task_type("CAUSAL_LM")),
        ),
        (
            "prefix-tuning-projection",
            Box::new(
                PrefixTuningConfig::new(5)
                    .with_projection(12)
                    .with_task_type("CAUSAL_LM"),
            ),
        ),
    ]
}

fn logits(model: &Llama, ids: &[i64], device: &Device) -> Tensor<3> {
    let data = TensorData::new(ids.to_vec(), [1, ids.len()]);
    let context = ForwardContext::new().with_tasks(TaskIds::new([TASK]));
    model.forward_in(Tensor::<2, Int>::from_data(data, device), context)
}

#[test]
fn python_computes_the_logits_that_we_computed() {
    let Some(python) = Python::find() else {
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
    let tokens: Vec<u32> = (0..23).map(|i| 3 + i * i * 7 % (vocabulary - 3)).collect();
    let ids: Vec<i64> = tokens.iter().map(|id| i64::from(*id)).collect();
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
            let loss = model.loss(&LmBatch {
                tasks: Some(TaskIds::new([TASK])),
                ..LmBatch::of_text(&tokens)
            });
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
            // What is compared is not to be rounded.
            let config = ExportConfig::new().with_dtype(ExportDtype::F32);
            merged
                .export_with(case.join("merged"), None, &config)
                .unwrap();
        }
        let io = case.join("io.safetensors");
        let tasks = vec![TASK as i64; ids.len()];
        let inputs: [(&str, &[i64]); 2] = [("input_ids", &ids), ("task_of_each_token", &tasks)];
        write_io(&io, &inputs, [1, ids.len()], &output);
    }
    let answers = python.run("python_llama.py", &base_folder, &folder);
    answers.check(cases.iter().map(|(name, _)| *name), "adapter", &[]);
}

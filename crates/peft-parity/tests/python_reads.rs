//! What is written here, Hugging Face PEFT and AdapterHub's `adapters` read: adapters are trained for a few steps, saved,
//! loaded by Python, and outputs compared.
//!
//! Runs where `PEFT_PYTHON` names a Python with `torch`, `transformers` and `peft`, and where `PEFT_ADAPTERS_PYTHON` names one
//! with `torch`, `transformers` and `adapters`; elsewhere the tests say that they did nothing.

mod common;
#[path = "python_reads/heads.rs"]
mod heads;
#[path = "python_reads/lora.rs"]
mod lora;
#[path = "python_reads/weights.rs"]
mod weights;

use std::path::Path;

use burn::module::Module as _;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Int, Tensor};
use common::python::{Python, write_io};
use peft::additive::{
    AdapterHubIa3, BeftConfig, BottleneckConfig, Ia3Config, RoadConfig, RoadVariant,
};
use peft::core::PeftModule as _;
use peft::core::calibration::Calibrate as _;
use peft::core::method::Method;
use peft::hybrid::UnionConfig;
use peft::reparameterization::{
    AdapterHubLora, AdapterHubMtl, AdapterHubVera, LoraConfig, MtlLoraConfig, VeraConfig, eva,
};
use peft::selective::{LnTuningConfig, ShiraConfig, SuperTuningConfig, TrainableTokensConfig};
use peft::soft_prompt::{
    AdapterHubPrompt, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig,
};
use peft_models::Bert;

const BASE: &str = "../peft-models/tests/golden/bert/base";
const TARGETS: [&str; 3] = ["query", "value", "output.dense"];

type Cases = Vec<(&'static str, Box<dyn Method>)>;

fn cases() -> Cases {
    let mut cases = lora::cases();
    cases.extend(weights::cases());
    cases.extend(scaling_cases());
    cases.extend(selective_cases());
    cases.extend(prompt_cases());
    cases
}

fn scaling_cases() -> Cases {
    vec![
        (
            "ia3",
            Box::new(
                Ia3Config::new()
                    .with_targets(["key", "value", "output.dense"])
                    .with_feedforward_modules(["output.dense"]),
            ),
        ),
        ("ia3-default", Box::new(Ia3Config::new())),
        (
            "road",
            Box::new(RoadConfig::new().with_group_size(8).with_targets(TARGETS)),
        ),
        (
            "road-4",
            Box::new(
                RoadConfig::new()
                    .with_variant(RoadVariant::Road4)
                    .with_group_size(16)
                    .with_targets(TARGETS),
            ),
        ),
        ("beft", Box::new(BeftConfig::new())),
    ]
}

fn selective_cases() -> Cases {
    vec![
        ("ln-tuning", Box::new(LnTuningConfig::new())),
        (
            "ln-tuning-some",
            Box::new(LnTuningConfig::new().with_targets(["output.LayerNorm"])),
        ),
        (
            "trainable-tokens",
            Box::new(TrainableTokensConfig::new([1, 8, 15])),
        ),
        ("shira", Box::new(ShiraConfig::new(4).with_targets(TARGETS))),
        (
            "shira-magnitude",
            Box::new(
                ShiraConfig::new(4)
                    .with_targets(TARGETS)
                    .with_mask_type("magnitude"),
            ),
        ),
        (
            "supertuning",
            Box::new(
                SuperTuningConfig::new()
                    .with_sparsity(0.9)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "supertuning-smallest",
            Box::new(
                SuperTuningConfig::new()
                    .with_sparsity(0.95)
                    .with_select_top(false)
                    .with_save_precomputed_indices(false)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "supertuning-supra",
            Box::new(
                SuperTuningConfig::new()
                    .with_sparsity(0.9)
                    .with_r(4)
                    .with_targets(TARGETS),
            ),
        ),
    ]
}

fn prompt_cases() -> Cases {
    vec![
        (
            "prompt-tuning",
            Box::new(PromptTuningConfig::new(5).with_task_type("FEATURE_EXTRACTION")),
        ),
        (
            "p-tuning-mlp",
            Box::new(
                PromptEncoderConfig::new(5)
                    .with_encoder_hidden_size(20)
                    .with_task_type("FEATURE_EXTRACTION"),
            ),
        ),
        (
            "p-tuning-lstm",
            Box::new(
                PromptEncoderConfig::new(5)
                    .with_lstm(2)
                    .with_encoder_hidden_size(12)
                    .with_task_type("FEATURE_EXTRACTION"),
            ),
        ),
        (
            "prefix-tuning",
            Box::new(PrefixTuningConfig::new(5).with_task_type("FEATURE_EXTRACTION")),
        ),
        (
            "prefix-tuning-projection",
            Box::new(
                PrefixTuningConfig::new(5)
                    .with_projection(20)
                    .with_task_type("FEATURE_EXTRACTION"),
            ),
        ),
    ]
}

/// Methods in AdapterHub's layout.
fn adapterhub_cases() -> Cases {
    let lora = |places| LoraConfig::new(4).with_alpha(6.0).with_adapterhub(places);
    let everywhere = || AdapterHubLora {
        attn_matrices: ["q", "k", "v"].map(String::from).into(),
        intermediate_lora: true,
        output_lora: true,
        leave_out: vec![1],
        ..AdapterHubLora::default()
    };
    let prompt = || PromptTuningConfig::new(5).with_adapterhub(AdapterHubPrompt::default());
    let gated = || lora(AdapterHubLora::default()).with_use_gating(true);
    let gated_ia3 = || {
        let mut fields = AdapterHubIa3::default();
        fields.rest.insert("use_gating".into(), true.into());
        Ia3Config::new().with_adapterhub(fields)
    };
    let vera = || AdapterHubVera {
        vera_b: 0.5,
        ..AdapterHubVera::default()
    };
    vec![
        ("houlsby", Box::new(BottleneckConfig::houlsby())),
        ("pfeiffer", Box::new(BottleneckConfig::pfeiffer())),
        ("lora", Box::new(lora(AdapterHubLora::default()))),
        ("lora-everywhere", Box::new(lora(everywhere()))),
        ("lora-gated", Box::new(gated())),
        (
            "lora-dora",
            Box::new(lora(everywhere()).with_use_dora(true)),
        ),
        ("lora-dora-gated", Box::new(gated().with_use_dora(true))),
        ("ia3-gated", Box::new(gated_ia3())),
        (
            "vera-matrices",
            Box::new(VeraConfig::new(4).with_adapterhub(vera())),
        ),
        (
            "mtl-lora-one",
            Box::new(
                MtlLoraConfig::new(4, 1)
                    .with_n_up_projection(2)
                    .with_adapterhub(AdapterHubMtl::default()),
            ),
        ),
        ("prompt-tuning", Box::new(prompt())),
        (
            "union",
            Box::new(
                UnionConfig::new()
                    .with(prompt())
                    .with(BottleneckConfig::pfeiffer())
                    .with(gated()),
            ),
        ),
    ]
}

/// Trains each case for a few steps, and writes it with inputs and outputs.
fn write(cases: &Cases, dir: &Path) {
    let device = peft::core::device::cpu_devices()[0].1.clone();
    let autodiff = device.clone().autodiff();
    let (rows, length) = (3, 9);
    let ids: Vec<i64> = (0..rows * length).map(|i| 1 + i * 7 % 90).collect();
    let mask: Vec<i64> = (0..rows * length)
        .map(|i| i64::from(i % length < 9 - 2 * (i / length)))
        .collect();
    let shape = [rows as usize, length as usize];
    for (name, method) in cases {
        autodiff.seed(11);
        let base = Bert::load(BASE, &autodiff).unwrap();
        let run = |model: &Bert, device| {
            let data = |values: &[i64]| burn::tensor::TensorData::new(values.to_vec(), shape);
            let ids = Tensor::<2, Int>::from_data(data(&ids), device);
            let mask = Tensor::<2, Int>::from_data(data(&mask), device);
            model.forward(ids, Some(mask.equal_elem(0))).hidden
        };
        // What begins with statistics sees the texts once.
        let looked_at = |model: &Bert| run(model, &autodiff).powi_scalar(2).mean();
        let mut model = if *name == "lora-eva" {
            let config = LoraConfig::new(4).with_alpha(10.0).with_targets(TARGETS);
            eva(&base, "trained", &config, 2.0, |probed| {
                run(probed, &device);
            })
        } else {
            base.attach_on("trained", method.as_ref(), [()], |model, ()| {
                looked_at(model)
            })
        }
        .unwrap();
        let mut optimizer = AdamConfig::new().init();
        let before = run(&model.valid(), &device);
        for _ in 0..5 {
            let loss = (run(&model, &autodiff) - 0.3).powi_scalar(2).mean();
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-2, model, gradients);
        }
        let output = run(&model.valid(), &device);
        let moved: f32 = (output.clone() - before).abs().max().into_scalar();
        assert!(
            moved > 1e-2,
            "{name}: training moved outputs by {moved} only"
        );
        let case = dir.join(name);
        model.save_adapter("trained", &case).unwrap();
        let inputs: [(&str, &[i64]); 2] = [("input_ids", &ids), ("attention_mask", &mask)];
        write_io(&case.join("io.safetensors"), &inputs, shape, &output);
    }
}

/// README's table finds methods by these names.
#[test]
fn cases_are_called_after_their_methods() {
    for (name, method) in cases().into_iter().chain(adapterhub_cases()) {
        let found = peft_parity::methods::method_of(name);
        assert_eq!(found, Some(method.info().name), "{name}");
    }
}

/// What Python's script says of outputs of the cases; its warnings of those in `noisy` say nothing.
fn check(python: &Python, script: &str, cases: &Cases, noisy: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    write(cases, dir.path());
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(BASE);
    let answers = python.run(script, &base, dir.path());
    answers.check(cases.iter().map(|(name, _)| *name), "output", noisy);
}

#[test]
fn adapterhub_computes_what_we_computed() {
    let modules = "torch, transformers and adapters";
    if let Some(python) = Python::named("PEFT_ADAPTERS_PYTHON", modules) {
        check(&python, "adapterhub_reads.py", &adapterhub_cases(), &[]);
    }
}

#[test]
fn python_computes_what_we_computed() {
    // Upstream misses the copies of RandLoRA's bases, which say nothing, GLoRA's zeros of parts that are not there, and
    // the matrices that TinyLoRA was told not to save.
    let noisy = ["randlora", "glora-bias", "tinylora-unsaved"];
    if let Some(python) = Python::find() {
        check(&python, "python_reads.py", &cases(), &noisy);
    }
}

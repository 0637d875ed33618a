//! What is written here, Hugging Face PEFT and AdapterHub's `adapters` read: adapters are trained for a few steps, saved,
//! loaded by Python, and outputs compared.
//!
//! Runs where `PEFT_PYTHON` names a Python with `torch`, `transformers` and `peft`, and where `PEFT_ADAPTERS_PYTHON` names one
//! with `torch`, `transformers` and `adapters`; elsewhere the tests say that they did nothing.

mod common;

use std::path::Path;

use burn::module::Module as _;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Int, Tensor};
use common::python::{Python, write_io};
use peft::additive::{BeftConfig, BottleneckConfig, Ia3Config, RoadConfig, RoadVariant};
use peft::core::PeftModule as _;
use peft::core::calibration::Calibrate as _;
use peft::core::method::{Activation, Method};
use peft::hybrid::UnionConfig;
use peft::reparameterization::{
    AdaLoraConfig, AdamssConfig, AdapterHubLora, BdLoraConfig, Bias, BoftConfig, C3aConfig,
    CordaConfig, CordaMethod, DeLoraConfig, DeftConfig, DeftDecomposition, FourierFtConfig,
    GloraConfig, GloraForm, GraLoraConfig, HiraConfig, HraConfig, KasaConfig, LilyConfig,
    LoftqConfig, LohaConfig, LokrConfig, LoraConfig, LoraGaConfig, LoraGaDirection, LoraGaScale,
    MissConfig, MontecloraConfig, OftConfig, OsfConfig, PeanutConfig, PsoftConfig, PsoftFactors,
    PveraConfig, RandLoraConfig, TinyLoraConfig, UniLoraConfig, VbLoraConfig, VeloraConfig,
    VeraConfig, WaveFtConfig, eva,
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
    let mut cases = lora_cases();
    cases.extend(lora_variants());
    cases.extend(other_weight_cases());
    cases.extend(random_projection_cases());
    cases.extend(newer_weight_cases());
    cases.extend(spectral_cases());
    cases.extend(scaling_cases());
    cases.extend(selective_cases());
    cases.extend(prompt_cases());
    cases
}

fn lora_cases() -> Cases {
    let lora = || LoraConfig::new(4).with_alpha(10.0).with_targets(TARGETS);
    vec![
        ("lora", Box::new(lora())),
        ("lora-rslora", Box::new(lora().with_use_rslora(true))),
        (
            "lora-patterns",
            Box::new(
                lora()
                    .with_rank_pattern(r"layer\.1\..*query", 2)
                    .with_alpha_pattern("value", 3.0),
            ),
        ),
        (
            "lora-embedding",
            Box::new(LoraConfig::new(3).with_targets(["word_embeddings", "key"])),
        ),
        ("lora-dora", Box::new(lora().with_use_dora(true))),
        ("lora-bias-for-b", Box::new(lora().with_lora_bias(true))),
        ("lora-bias-all", Box::new(lora().with_bias(Bias::All))),
        ("lora-bias-only", Box::new(lora().with_bias(Bias::Adapted))),
        (
            "lora-pissa",
            Box::new(lora().with_init_lora_weights("pissa")),
        ),
        (
            "lora-olora",
            Box::new(lora().with_init_lora_weights("olora")),
        ),
        ("lora-frozen-a", Box::new(lora().with_freeze_a(true))),
        (
            "lora-pooler",
            Box::new(lora().with_modules_to_save(["pooler"])),
        ),
        (
            "lora-token-rows",
            Box::new(lora().with_trainable_token_indices([4, 8, 15])),
        ),
    ]
}

/// LoRA's variants, and what it begins with.
fn lora_variants() -> Cases {
    let lora = || LoraConfig::new(4).with_alpha(10.0).with_targets(TARGETS);
    let started = |start: &str| lora().with_init_lora_weights(start);
    let blocks = BdLoraConfig::new(2, ["output.dense"], ["query", "value"]);
    let ga = LoraGaConfig::new(LoraGaDirection::ArBr, LoraGaScale::GdScale);
    let kpm = CordaConfig::new(CordaMethod::Kpm);
    vec![
        ("lora-gaussian", Box::new(started("gaussian"))),
        ("lora-orthogonal", Box::new(started("orthogonal"))),
        ("lora-mica", Box::new(started("mica"))),
        (
            "lora-loftq",
            Box::new(started("loftq").with_loftq_config(LoftqConfig::new(2))),
        ),
        ("lora-corda", Box::new(started("corda"))),
        (
            "lora-corda-kpm",
            Box::new(started("corda").with_corda_config(kpm)),
        ),
        ("lora-ga", Box::new(started("lora_ga"))),
        (
            "lora-ga-even",
            Box::new(started("lora_ga").with_lora_ga_config(ga)),
        ),
        ("lora-eva", Box::new(lora())),
        ("lora-bd", Box::new(lora().with_use_bdlora(blocks))),
        (
            "lora-kasa",
            Box::new(lora().with_kasa_config(KasaConfig::default())),
        ),
        (
            "lora-velora",
            Box::new(lora().with_velora_config(VeloraConfig {
                num_groups: 4,
                ..VeloraConfig::default()
            })),
        ),
        (
            "lora-monteclora",
            Box::new(lora().with_monteclora_config(MontecloraConfig::default())),
        ),
        (
            "lora-variants-together",
            Box::new(
                started("olora")
                    .with_use_rslora(true)
                    .with_use_dora(true)
                    .with_rank_pattern("value", 6),
            ),
        ),
    ]
}

fn other_weight_cases() -> Cases {
    vec![
        ("loha", Box::new(LohaConfig::new(4).with_targets(TARGETS))),
        ("lokr", Box::new(LokrConfig::new(2).with_targets(TARGETS))),
        (
            "adalora",
            Box::new(
                AdaLoraConfig::new(4, 2)
                    .with_lora_alpha(128.0)
                    .with_targets(TARGETS),
            ),
        ),
        ("hira", Box::new(HiraConfig::new(4).with_targets(TARGETS))),
        ("oft", Box::new(OftConfig::new(8).with_targets(TARGETS))),
        (
            "oft-exact",
            Box::new(
                OftConfig::new(16)
                    .with_use_cayley_neumann(false)
                    .with_targets(TARGETS),
            ),
        ),
        // Upstream reads more than one factor only where it can build its CUDA operation.
        (
            "boft",
            Box::new(
                BoftConfig::new(4)
                    .with_boft_n_butterfly_factor(1)
                    .with_targets(TARGETS),
            ),
        ),
        ("c3a", Box::new(C3aConfig::new(8).with_targets(TARGETS))),
        (
            "fourierft",
            Box::new(
                FourierFtConfig::new(30)
                    .with_random_loc_seed(77)
                    .with_targets(TARGETS),
            ),
        ),
        ("hra", Box::new(HraConfig::new(4).with_targets(TARGETS))),
        ("miss", Box::new(MissConfig::new(4).with_targets(TARGETS))),
        (
            "randlora",
            Box::new(
                RandLoraConfig::new(4)
                    .with_randlora_alpha(20.0)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "vblora",
            Box::new(VbLoraConfig::new(4, 20, 8).with_targets(TARGETS)),
        ),
        (
            "lily",
            Box::new(
                LilyConfig::new(4)
                    .with_stride_a(2)
                    .with_num_b(3)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "vblora-chosen",
            Box::new(
                VbLoraConfig::new(4, 20, 8)
                    .with_save_only_topk_weights(true)
                    .with_targets(TARGETS),
            ),
        ),
    ]
}

/// Whose frozen random numbers are in the file, or in the configuration's seed.
fn random_projection_cases() -> Cases {
    vec![
        ("vera", Box::new(VeraConfig::new(16).with_targets(TARGETS))),
        (
            "vera-unsaved",
            Box::new(
                VeraConfig::new(16)
                    .with_projection_prng_key(5)
                    .with_save_projection(false)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "unilora",
            Box::new(
                UniLoraConfig::new(3, 50)
                    .with_proj_seed(7)
                    .with_init_theta_d_bound(0.5)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "unilora-saved",
            Box::new(
                UniLoraConfig::new(3, 50)
                    .with_init_theta_d_bound(0.5)
                    .with_save_indices(true)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "tinylora",
            Box::new(TinyLoraConfig::new(9).with_r(4).with_targets(TARGETS)),
        ),
        (
            "tinylora-unsaved",
            Box::new(
                TinyLoraConfig::new(9)
                    .with_r(4)
                    .with_weight_tying(0.6)
                    .with_projection_seed(5)
                    .with_save_projection(false)
                    .with_targets(["word_embeddings", "query", "output.dense"]),
            ),
        ),
        (
            "pvera",
            Box::new(PveraConfig::new(16).with_targets(TARGETS)),
        ),
        (
            "pvera-unsaved",
            Box::new(
                PveraConfig::new(16)
                    .with_projection_prng_key(5)
                    .with_save_projection(false)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "waveft",
            Box::new(
                WaveFtConfig::new(40)
                    .with_wavelet_family("sym4")
                    .with_targets(TARGETS),
            ),
        ),
        (
            "waveft-elements",
            Box::new(
                WaveFtConfig::new(40)
                    .with_use_idwt(false)
                    .with_proportional_parameters(true)
                    .with_targets(TARGETS),
            ),
        ),
    ]
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
    vec![
        ("houlsby", Box::new(BottleneckConfig::houlsby())),
        ("pfeiffer", Box::new(BottleneckConfig::pfeiffer())),
        ("lora", Box::new(lora(AdapterHubLora::default()))),
        ("lora-everywhere", Box::new(lora(everywhere()))),
        ("lora-gated", Box::new(gated())),
        (
            "lora-dora",
            Box::new(lora(everywhere()).with_alpha(4.0).with_use_dora(true)),
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

#[test]
fn adapterhub_computes_what_we_computed() {
    let modules = "torch, transformers and adapters";
    let Some(python) = Python::named("PEFT_ADAPTERS_PYTHON", modules) else {
        return;
    };
    let (dir, cases) = (tempfile::tempdir().unwrap(), adapterhub_cases());
    write(&cases, dir.path());
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(BASE);
    let answers = python.run("adapterhub_reads.py", &base, dir.path());
    answers.check(cases.iter().map(|(name, _)| *name), "output", &[]);
}

#[test]
fn python_computes_what_we_computed() {
    let Some(python) = Python::find() else {
        return;
    };
    let (dir, cases) = (tempfile::tempdir().unwrap(), cases());
    write(&cases, dir.path());
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(BASE);
    let answers = python.run("python_reads.py", &base, dir.path());
    // Upstream misses the copies of RandLoRA's bases, which say nothing, and GLoRA's zeros of parts that are not there.
    let noisy = ["randlora", "glora-bias"];
    answers.check(cases.iter().map(|(name, _)| *name), "output", &noisy);
}

fn newer_weight_cases() -> Cases {
    vec![
        (
            "gralora",
            Box::new(GraLoraConfig::new(4).with_targets(TARGETS)),
        ),
        (
            "gralora-hybrid",
            Box::new(
                GraLoraConfig::new(8)
                    .with_gralora_k(4)
                    .with_hybrid_r(3)
                    .with_bias(Bias::Adapted)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "delora",
            Box::new(
                DeLoraConfig::new(4)
                    .with_delora_lambda(2.5)
                    .with_rank_pattern("query", 3)
                    .with_lambda_pattern(r"layer\.1\..*", 1.5)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "deft",
            Box::new(DeftConfig::new(4).with_alpha(6.0).with_targets(TARGETS)),
        ),
        (
            "deft-qr",
            Box::new(
                DeftConfig::new(4)
                    .with_decomposition_method(DeftDecomposition::Qr)
                    .with_bias(Bias::Adapted)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "deft-para",
            Box::new(DeftConfig::para(4).with_targets(TARGETS)),
        ),
        (
            "peanut",
            Box::new(
                PeanutConfig::new(4)
                    .with_scaling(0.5)
                    .with_act_fn(Activation::LeakyRelu)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "peanut-deep",
            Box::new(PeanutConfig::new(4).with_depth(2).with_targets(TARGETS)),
        ),
    ]
}

fn spectral_cases() -> Cases {
    vec![
        ("glora", Box::new(GloraConfig::new(4).with_targets(TARGETS))),
        (
            "glora-vectors",
            Box::new(
                GloraConfig::new(4)
                    .with_config_a_b(GloraForm::Vector)
                    .with_config_c(GloraForm::Vector)
                    .with_config_d_e(GloraForm::Vector)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "glora-bias",
            Box::new(
                GloraConfig::new(4)
                    .with_config_a_b(GloraForm::None)
                    .with_targets(TARGETS),
            ),
        ),
        ("psoft", Box::new(PsoftConfig::new(6).with_targets(TARGETS))),
        (
            "psoft-series",
            Box::new(
                PsoftConfig::new(5)
                    .with_ab_svd_init(PsoftFactors::PissaInit)
                    .with_use_cayley_neumann(true)
                    .with_cayley_neumann_eps(0.5)
                    .with_targets(TARGETS),
            ),
        ),
        (
            "adamss",
            Box::new(AdamssConfig::new(12, 3, 2).with_targets(TARGETS)),
        ),
        (
            "adamss-dynamic",
            Box::new(
                AdamssConfig::new(9, 4, 3)
                    .with_use_dynamic_rank(true)
                    .with_svd_threshold(0.4)
                    .with_random_seed(3)
                    .with_targets(TARGETS),
            ),
        ),
        ("osf", Box::new(OsfConfig::new().with_targets(TARGETS))),
        (
            "osf-shares",
            Box::new(
                OsfConfig::new()
                    .with_effective_rank(0.75)
                    .with_rank_pattern("value", 3_usize)
                    .with_targets(TARGETS),
            ),
        ),
    ]
}

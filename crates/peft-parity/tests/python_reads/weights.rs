//! Other methods that change weights, in Hugging Face PEFT's layout.

use peft::core::method::Activation;
use peft::reparameterization::{
    AdaLoraConfig, AdamssConfig, Bias, BoftConfig, C3aConfig, DeLoraConfig, DeftConfig,
    DeftDecomposition, FourierFtConfig, GloraConfig, GloraForm, GraLoraConfig, HiraConfig,
    HraConfig, LilyConfig, LohaConfig, LokrConfig, MissConfig, OftConfig, OsfConfig, PeanutConfig,
    PsoftConfig, PsoftFactors, PveraConfig, RandLoraConfig, TinyLoraConfig, UniLoraConfig,
    VbLoraConfig, VeraConfig, WaveFtConfig,
};

use crate::{Cases, TARGETS};

pub(crate) fn cases() -> Cases {
    let mut cases = other_weight_cases();
    cases.extend(random_projection_cases());
    cases.extend(newer_weight_cases());
    cases.extend(spectral_cases());
    cases
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

//! The conformance suite, on every method of the family and its variants.

use peft_core::method::Activation;
use peft_reparameterization::{
    AdaLoraConfig, AdamssConfig, Bias, BoftConfig, C3aConfig, DeLoraConfig, DeftConfig,
    DeftDecomposition, FourierFtConfig, FrodConfig, GloraConfig, GloraForm, GraLoraConfig,
    HiraConfig, HraConfig, InitWeights, KronaBlockConfig, LohaConfig, LokrConfig, METHODS,
    MissConfig, OftConfig, OsfConfig, PeanutConfig, PsoftConfig, PsoftFactors, SaidConfig,
    WaveFtConfig,
};

#[path = "conformance/lora.rs"]
mod lora;
#[path = "conformance/shared.rs"]
mod shared;

peft_conformance::conformance_suite!(METHODS, {
    let mut cases = lora::cases();
    cases.extend(shared::cases());
    cases.extend([
        Case::new(
            "loha",
            LohaConfig::new(4)
                .with_alpha(64.0)
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "loha as factors, with dropouts and patterns",
            LohaConfig::new(2)
                .with_alpha(32.0)
                .with_rank_dropout(0.1)
                .with_module_dropout(0.1)
                .with_targets(["value", "dense"])
                .with_rank_pattern("value", 6)
                .with_alpha_pattern(r"layer\.1\..*", 20.0),
        ),
        Case::new(
            "loha of a convolution",
            LohaConfig::new(3)
                .with_alpha(24.0)
                .with_targets(["convolution", "query", "dense"]),
        ),
        Case::new(
            "loha of a convolution, with cores and dropouts",
            LohaConfig::new(3)
                .with_alpha(24.0)
                .with_use_effective_conv2d(true)
                .with_rank_dropout(0.1)
                .with_module_dropout(0.1)
                .with_rank_pattern("convolution", 5)
                .with_targets(["convolution", "value", "dense"]),
        ),
        Case::new(
            "lokr of a convolution",
            LokrConfig::new(1)
                .with_alpha(3.0)
                .with_decompose_factor(1)
                .with_rank_dropout(0.1)
                .with_targets(["convolution", "query", "dense"]),
        ),
        Case::new(
            "lokr of a convolution, with a core",
            LokrConfig::new(1)
                .with_alpha(3.0)
                .with_decompose_factor(1)
                .with_use_effective_conv2d(true)
                .with_init_weights(InitWeights::Named("lycoris".into()))
                .with_targets(["convolution", "value", "dense"]),
        ),
        Case::new(
            "lokr",
            LokrConfig::new(4)
                .with_alpha(16.0)
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "lokr of products",
            LokrConfig::new(1).with_alpha(4.0).with_decompose_both(true),
        ),
        Case::new(
            "lokr with dropouts",
            LokrConfig::new(2)
                .with_alpha(6.0)
                .with_decompose_factor(2)
                .with_rank_dropout(0.1)
                .with_module_dropout(0.1)
                .with_init_weights(InitWeights::Named("lycoris".into()))
                .with_targets(["query", "dense"])
                .with_rank_pattern("query", 3),
        ),
        Case::new(
            "krona",
            LokrConfig::krona(2.0).with_targets(["query", "value", "dense"]),
        ),
        Case::new("krona beside feed-forward", KronaBlockConfig::new(2.0)),
        Case::new(
            "krona beside feed-forward, without a residual, with a head",
            KronaBlockConfig::new(0.7)
                .with_residual(false)
                .with_modules_to_save(["classifier"]),
        ),
        Case::new("hra", HraConfig::new(4).with_targets(["query", "value"])),
        Case::new(
            "hra with biases and a head",
            HraConfig::new(6)
                .with_targets(["value", "dense"])
                .with_bias(Bias::All)
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "hra of a convolution",
            HraConfig::new(6).with_targets(["convolution", "query", "dense"]),
        ),
        Case::new(
            "miss of a rank that divides no width",
            MissConfig::new(5).with_miss_dropout(0.1),
        ),
        Case::new(
            "miss mini",
            MissConfig::mini(4, 8)
                .with_targets(["value", "dense"])
                .with_bias(Bias::Adapted),
        ),
        Case::new(
            "miss bat",
            MissConfig::bat(4).with_targets(["query", "value"]),
        ),
        Case::new(
            "adalora",
            AdaLoraConfig::new(4, 2)
                .with_lora_alpha(64.0)
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "adalora with dropout, biases and a head",
            AdaLoraConfig::new(3, 2)
                .with_lora_alpha(32.0)
                .with_lora_dropout(0.1)
                .with_bias(Bias::Adapted)
                .with_targets(["query", "key", "value", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new("hira", HiraConfig::new(8).with_targets(["query", "value"])),
        Case::new(
            "hira gaussian, dropout, pattern, embedding, head",
            HiraConfig::new(4)
                .with_init_weights("gaussian")
                .with_hira_dropout(0.1)
                .with_rank_pattern("dense", 6)
                .with_targets(["word_embeddings", "query", "dense"])
                .with_task_type("SEQ_CLS"),
        ),
        Case::new(
            "hira of a convolution, with dropout",
            HiraConfig::new(4).with_hira_dropout(0.1).with_targets([
                "convolution",
                "value",
                "dense",
            ]),
        ),
        Case::new(
            "said",
            SaidConfig::new(200).with_targets(["query", "key", "value", "dense"]),
        ),
        Case::new(
            "did of embeddings, with a head",
            SaidConfig::new(300)
                .with_structure_aware(false)
                .with_seed(5)
                .with_targets(["word_embeddings", "query", "value", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new("oft", OftConfig::new(8).with_targets(["query", "value"])),
        Case::new(
            "oft, exact, constrained, shared",
            OftConfig::new(32)
                .with_r(4)
                .with_oft_block_size(0)
                .with_coft(true)
                .with_eps(0.5)
                .with_block_share(true)
                .with_use_cayley_neumann(false)
                .with_targets(["query", "dense"]),
        ),
        Case::new(
            "oft, dropout and biases",
            OftConfig::new(16)
                .with_use_cayley_neumann(false)
                .with_module_dropout(0.5)
                .with_bias(Bias::Adapted)
                .with_targets(["dense"]),
        ),
        Case::new(
            "oft of a convolution and a table, with dropout",
            OftConfig::new(4)
                .with_module_dropout(0.4)
                .with_bias(Bias::All)
                .with_targets(["convolution", "word_embeddings", "query", "dense"]),
        ),
        Case::new(
            "boft of a convolution, with dropout",
            BoftConfig::new(2)
                .with_boft_n_butterfly_factor(2)
                .with_boft_dropout(0.3)
                .with_targets(["convolution", "query", "dense"]),
        ),
        Case::new("boft", BoftConfig::new(4).with_targets(["query", "value"])),
        Case::new(
            "boft, a butterfly with dropout and a head",
            BoftConfig::new(4)
                .with_boft_block_num(8)
                .with_boft_block_size(0)
                .with_boft_n_butterfly_factor(3)
                .with_boft_dropout(0.3)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "psoft",
            PsoftConfig::new(6)
                .with_psoft_alpha(9.0)
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "psoft by a series with a bound, roots in both, dropout and a head",
            PsoftConfig::new(5)
                .with_psoft_alpha(3.0)
                .with_ab_svd_init(PsoftFactors::PissaInit)
                .with_use_cayley_neumann(true)
                .with_num_cayley_neumann_terms(6)
                .with_cayley_neumann_eps(0.9)
                .with_psoft_mag_a(false)
                .with_psoft_dropout(0.1)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "psoft, a free matrix",
            PsoftConfig::new(8)
                .with_psoft_orth(false)
                .with_psoft_mag_b(false)
                .with_targets(["value", "dense"]),
        ),
        Case::new(
            "glora",
            GloraConfig::new(4).with_targets(["query", "value", "dense"]),
        ),
        Case::new(
            "glora of vectors, biases and a head",
            GloraConfig::new(1)
                .with_config_a_b(GloraForm::Vector)
                .with_config_c(GloraForm::Vector)
                .with_config_d_e(GloraForm::Vector)
                .with_bias(Bias::Adapted)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "glora of the bias alone",
            GloraConfig::new(3)
                .with_config_a_b(GloraForm::None)
                .with_targets(["key", "dense"]),
        ),
        Case::new(
            "glora of constants",
            GloraConfig::new(1)
                .with_config_a_b(GloraForm::Constant)
                .with_config_c(GloraForm::None)
                .with_targets(["query", "value", "dense"]),
        ),
        Case::new(
            "frod",
            FrodConfig::new(0.02).with_targets(["query", "value", "dense"]),
        ),
        Case::new(
            "frod, dense, with dropout, biases and a head",
            FrodConfig::new(0.3)
                .with_regularization_alpha(0.1)
                .with_frod_dropout(0.1)
                .with_bias(Bias::Adapted)
                .with_targets(["key", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "osf",
            OsfConfig::new().with_targets(["query", "value", "dense"]),
        ),
        Case::new(
            "osf, shares and numbers, with a head",
            OsfConfig::new()
                .with_effective_rank(0.75)
                .with_rank_pattern("query", 5_usize)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "c3a",
            C3aConfig::new(4).with_targets(["query", "key", "value", "dense"]),
        ),
        Case::new(
            "c3a, patterns",
            C3aConfig::new(8)
                .with_block_size_pattern("query", 32)
                .with_block_size_pattern(r"layer\.1\..*", 2)
                .with_init_weights(InitWeights::Named("gaussian".into()))
                .with_targets(["query", "key", "value", "dense"]),
        ),
        Case::new(
            "c3a with a head",
            C3aConfig::new(16)
                .with_init_weights(InitWeights::Named("kaiming_uniform".into()))
                .with_targets(["value", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "waveft",
            // With 25 the change would be several times the tiny model's weights, which rounds as FourierFT's does.
            WaveFtConfig::new(60)
                .with_scaling(8.0)
                .with_targets(["query", "key", "value", "dense"]),
        ),
        Case::new(
            "waveft of longer filters, patterns, a head",
            WaveFtConfig::new(40)
                .with_scaling(6.0)
                .with_wavelet_family("coif1")
                .with_random_loc_seed(-3)
                .with_n_frequency_pattern("query", 200)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "waveft without a transform, in proportion, biases",
            WaveFtConfig::new(50)
                .with_scaling(7.0)
                .with_use_idwt(false)
                .with_proportional_parameters(true)
                .with_bias(Bias::All)
                .with_targets(["value", "dense"]),
        ),
        Case::new(
            "fourierft",
            FourierFtConfig::new(40).with_targets(["query", "value"]),
        ),
        Case::new(
            "fourierft, low rank",
            // A spectrum starts as normal numbers: with 600 the change would be fifty times the tiny model's
            // weights, and rounding alone would make another model.
            FourierFtConfig::new(7)
                .with_scaling(150.0)
                .with_targets(["query", "key", "value", "dense"]),
        ),
        Case::new(
            "fourierft, patterns and a head",
            FourierFtConfig::new(7)
                .with_scaling(300.0)
                .with_random_loc_seed(3)
                .with_n_frequency_pattern("query", 90)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "gralora",
            GraLoraConfig::new(4)
                .with_alpha(12.0)
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "gralora of four blocks a side, with dropout, biases and a head",
            GraLoraConfig::new(8)
                .with_gralora_k(4)
                .with_alpha(10.0)
                .with_hybrid_r(3)
                .with_gralora_dropout(0.1)
                .with_bias(Bias::All)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "delora",
            DeLoraConfig::new(4)
                .with_delora_lambda(0.7)
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "delora with dropout, patterns, biases and a head",
            DeLoraConfig::new(3)
                .with_delora_lambda(0.5)
                .with_module_dropout(0.1)
                .with_rank_pattern("query", 5)
                .with_lambda_pattern(r"layer\.1\..*", 1.3)
                .with_bias(Bias::Adapted)
                .with_targets(["query", "dense", "lm_head"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "deft",
            DeftConfig::new(4)
                .with_alpha(10.0)
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "deft of projections, with dropout, biases and a head",
            DeftConfig::new(3)
                .with_decomposition_method(DeftDecomposition::Qr)
                .with_alpha(6.0)
                .with_deft_dropout(0.1)
                .with_bias(Bias::All)
                .with_targets(["query", "dense", "lm_head"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "adamss",
            AdamssConfig::new(8, 3, 2).with_targets(["query", "value"]),
        ),
        Case::new(
            "adamss, ranks by directions, a schedule and a head",
            AdamssConfig::new(6, 4, 3)
                .with_use_dynamic_rank(true)
                .with_svd_threshold(0.3)
                .with_random_seed(7)
                .with_use_asa(true)
                .with_asa_target_subspaces(4)
                .with_init_warmup(3)
                .with_final_warmup(9)
                .with_mask_interval(2)
                .with_targets(["query", "dense", "lm_head"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "peanut",
            PeanutConfig::new(4)
                .with_scaling(1.5)
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "peanut, two levels deep, with a head",
            PeanutConfig::new(6)
                .with_depth(2)
                .with_act_fn(Activation::Gelu)
                .with_scaling(0.7)
                .with_targets(["query", "dense", "lm_head"])
                .with_modules_to_save(["classifier"]),
        ),
    ]);
    cases
});

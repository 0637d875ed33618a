//! The conformance suite, on every method of the family and its variants.

use peft_core::method::Activation;
use peft_reparameterization::{
    AdaLoraConfig, AdamssConfig, BdLoraConfig, Bias, BoftConfig, C3aConfig, DeLoraConfig,
    DeftConfig, DeftDecomposition, FourierFtConfig, FrodConfig, GloraConfig, GloraForm,
    GraLoraConfig, HiraConfig, HraConfig, InitWeights, KasaConfig, KronaBlockConfig, LilyConfig,
    LoftqConfig, LohaConfig, LokrConfig, LoraConfig, METHODS, MissConfig, MontecloraConfig,
    MtlLoraConfig, OftConfig, OsfConfig, PeanutConfig, PolyConfig, PsoftConfig, PsoftFactors,
    PveraConfig, RandLoraConfig, SaidConfig, TaskSpecificMatrix, TinyLoraConfig, UniLoraConfig,
    VbLoraConfig, VeloraConfig, VeloraInit, VeraConfig, WaveFtConfig,
};

peft_conformance::conformance_suite!(
    METHODS,
    vec![
        Case::new(
            "query and value",
            LoraConfig::new(4)
                .with_alpha(12.0)
                .with_targets(["query", "value"])
        ),
        Case::new("all linear", LoraConfig::new(2).with_alpha(8.0)),
        Case::new(
            "rslora with dropout, patterns and a head",
            LoraConfig::new(4)
                .with_alpha(5.0)
                .with_use_rslora(true)
                .with_lora_dropout(0.1)
                .with_targets(r".*\.(query|dense)")
                .with_rank_pattern("query", 3)
                .with_alpha_pattern(r"layer\.1\..*", 9.0)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "embedding and biases",
            LoraConfig::new(3)
                .with_targets(["word_embeddings", "value"])
                .with_bias(Bias::All)
                .with_task_type("SEQ_CLS")
        ),
        Case::new(
            "dora, also of an embedding",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_use_dora(true)
                .with_targets(["word_embeddings", "value", "dense"])
        ),
        Case::new(
            "dora with dropout over pissa",
            LoraConfig::new(3)
                .with_use_dora(true)
                .with_lora_dropout(0.1)
                .with_init_lora_weights("pissa")
                .with_targets(["query", "value"])
        ),
        Case::new(
            "a bias for B, A frozen",
            LoraConfig::new(4)
                .with_alpha(16.0)
                .with_lora_bias(true)
                .with_freeze_a(true)
                .with_targets(["query", "value", "dense"])
        ),
        Case::new(
            "a tied head and a convolution",
            LoraConfig::new(3)
                .with_alpha(6.0)
                .with_targets(["query", "lm_head", "convolution"])
        ),
        Case::new(
            "dora of a convolution, with dropout",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_use_dora(true)
                .with_lora_dropout(0.1)
                .with_targets(["convolution", "value", "dense"])
        ),
        Case::new(
            "a table that its tied head follows",
            LoraConfig::new(3)
                .with_alpha(6.0)
                .with_ensure_weight_tying(true)
                .with_targets(["value", "lm_head"])
        ),
        Case::new(
            "token rows",
            LoraConfig::new(3)
                .with_alpha(6.0)
                .with_trainable_token_indices([3, 50, 7])
                .with_targets(["query", "value"])
        ),
        Case::new(
            "olora",
            LoraConfig::new(2)
                .with_alpha(3.0)
                .with_init_lora_weights("olora")
                .with_targets(["query", "dense"])
        ),
        Case::new(
            "bd-lora, dropout, and a plain layer",
            LoraConfig::new(4)
                .with_alpha(12.0)
                .with_lora_dropout(0.1)
                .with_use_bdlora(BdLoraConfig {
                    match_strict: false,
                    ..BdLoraConfig::new(2, ["dense"], ["query", "key"])
                })
                .with_targets(["query", "key", "value", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "kasa",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_kasa_config(KasaConfig::default())
                .with_targets(["query", "dense"])
        ),
        Case::new(
            "kasa with dropout, biases and a head",
            LoraConfig::new(2)
                .with_alpha(5.0)
                .with_lora_dropout(0.1)
                .with_kasa_config(KasaConfig::default())
                .with_bias(Bias::Adapted)
                .with_targets(["value"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "loftq in three iterations, dropout",
            LoraConfig::new(3)
                .with_alpha(6.0)
                .with_lora_dropout(0.1)
                .with_init_lora_weights("loftq")
                .with_loftq_config(LoftqConfig::new(3))
                .with_targets(["query", "dense"])
        ),
        Case::new(
            "mica, also of a table",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_init_lora_weights("mica")
                .with_targets(["word_embeddings", "value", "dense"])
        ),
        Case::new(
            "alora, dropout and a head",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_lora_dropout(0.1)
                // The first row has it as its second token, the others do not have it.
                .with_alora_invocation_tokens([39])
                .with_targets(["query", "value"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "velora of random directions, dropout",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_lora_dropout(0.1)
                .with_velora_config(VeloraConfig {
                    num_groups: 5,
                    init_type: VeloraInit::Random,
                    ..VeloraConfig::default()
                })
                .with_targets(["query", "dense"])
        ),
        Case::new(
            "monteclora",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_monteclora_config(MontecloraConfig {
                    num_samples: 3,
                    use_entropy: true,
                    ..MontecloraConfig::default()
                })
                .with_targets(["query", "dense"])
        ),
        Case::new(
            "lily, every two layers, names that overlap",
            LilyConfig::new(4)
                .with_stride_a(2)
                .with_num_b(3)
                .with_scaling(1.5)
                .with_targets(["query", "dense", "output.dense"])
        ),
        Case::new(
            "lily, all linear, with a head",
            LilyConfig::new(2).with_modules_to_save(["classifier"])
        ),
        Case::new(
            "poly, two tasks, two splits",
            PolyConfig::new(4, 2)
                .with_n_skills(3)
                .with_n_splits(2)
                .with_targets(["query", "value", "dense"])
        ),
        Case::new(
            "poly without noise, with a head",
            PolyConfig::new(3, 4)
                .with_deterministic_router(true)
                .with_targets(["value", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "mtl-lora, two tasks",
            MtlLoraConfig::new(4, 2)
                .with_alpha(12.0)
                .with_n_up_projection(3)
                .with_targets(["query", "value"])
        ),
        Case::new(
            "mtl-lora with matrices, dropout, biases and a head",
            MtlLoraConfig::new(3, 2)
                .with_alpha(7.0)
                .with_n_up_projection(2)
                .with_weights_sharpness(0.5)
                .with_task_specific_matrix_type(TaskSpecificMatrix::Linear)
                .with_dropout(0.1)
                .with_bias(Bias::Adapted)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "vera, all linear",
            VeraConfig::new(12)
                .with_d_initial(1.0)
                .with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "vera, drawn from its key, dropout, head, biases",
            VeraConfig::new(40)
                .with_projection_prng_key(7)
                .with_save_projection(false)
                .with_vera_dropout(0.1)
                .with_targets(["query", "dense"])
                .with_bias(Bias::Adapted)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "randlora, query and value",
            RandLoraConfig::new(8)
                .with_randlora_alpha(16.0)
                .with_targets(["query", "value"])
        ),
        Case::new(
            "randlora, sparse, several shapes",
            RandLoraConfig::new(5)
                .with_randlora_alpha(20.0)
                .with_sparse(true)
                .with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "randlora, very sparse, unsaved, dropout, head",
            RandLoraConfig::new(6)
                .with_randlora_alpha(20.0)
                .with_very_sparse(true)
                .with_save_projection(false)
                .with_projection_prng_key(-3)
                .with_randlora_dropout(0.1)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "vb-lora, all linear",
            VbLoraConfig::new(3, 12, 16)
                .with_topk(3)
                .with_init_vector_bank_bound(0.2)
                .with_init_logits_std(0.1)
                .with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "vb-lora, all vectors, dropout, head, biases",
            VbLoraConfig::new(2, 5, 32)
                .with_topk(5)
                .with_init_vector_bank_bound(0.1)
                .with_init_logits_std(0.1)
                .with_vblora_dropout(0.1)
                .with_bias(Bias::All)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "vblora, chosen weights saved only",
            VbLoraConfig::new(4, 20, 8)
                .with_topk(3)
                .with_init_vector_bank_bound(0.1)
                .with_save_only_topk_weights(true)
                .with_targets(["query", "dense"])
        ),
        Case::new(
            "uni-lora, all linear",
            UniLoraConfig::new(3, 100)
                .with_init_theta_d_bound(0.8)
                .with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "uni-lora, indices in the file, normal, dropout, head, biases",
            UniLoraConfig::new(4, 30)
                .with_proj_seed(7)
                .with_save_indices(true)
                .with_init_weights(false)
                .with_unilora_dropout(0.1)
                .with_bias(Bias::Adapted)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "tinylora, all linear",
            TinyLoraConfig::new(20)
                .with_r(4)
                .with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "tinylora, one vector for two layers, a table, drawn again, dropout, biases, head",
            TinyLoraConfig::new(30)
                .with_r(5)
                .with_weight_tying(0.5)
                .with_save_projection(false)
                .with_tinylora_dropout(0.1)
                .with_bias(Bias::Adapted)
                .with_targets(["word_embeddings", "value", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "pvera, all linear",
            PveraConfig::new(12)
                .with_d_initial(1.0)
                .with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "pvera, drawn from its key, dropout, head, biases",
            PveraConfig::new(40)
                .with_projection_prng_key(7)
                .with_save_projection(false)
                .with_pvera_dropout(0.1)
                .with_targets(["query", "dense"])
                .with_bias(Bias::Adapted)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "loha",
            LohaConfig::new(4)
                .with_alpha(64.0)
                .with_targets(["query", "value"])
        ),
        Case::new(
            "loha as factors, with dropouts and patterns",
            LohaConfig::new(2)
                .with_alpha(32.0)
                .with_rank_dropout(0.1)
                .with_module_dropout(0.1)
                .with_targets(["value", "dense"])
                .with_rank_pattern("value", 6)
                .with_alpha_pattern(r"layer\.1\..*", 20.0)
        ),
        Case::new(
            "loha of a convolution",
            LohaConfig::new(3)
                .with_alpha(24.0)
                .with_targets(["convolution", "query", "dense"])
        ),
        Case::new(
            "loha of a convolution, with cores and dropouts",
            LohaConfig::new(3)
                .with_alpha(24.0)
                .with_use_effective_conv2d(true)
                .with_rank_dropout(0.1)
                .with_module_dropout(0.1)
                .with_rank_pattern("convolution", 5)
                .with_targets(["convolution", "value", "dense"])
        ),
        Case::new(
            "lokr of a convolution",
            LokrConfig::new(1)
                .with_alpha(3.0)
                .with_decompose_factor(1)
                .with_rank_dropout(0.1)
                .with_targets(["convolution", "query", "dense"])
        ),
        Case::new(
            "lokr of a convolution, with a core",
            LokrConfig::new(1)
                .with_alpha(3.0)
                .with_decompose_factor(1)
                .with_use_effective_conv2d(true)
                .with_init_weights(InitWeights::Named("lycoris".into()))
                .with_targets(["convolution", "value", "dense"])
        ),
        Case::new(
            "lokr",
            LokrConfig::new(4)
                .with_alpha(16.0)
                .with_targets(["query", "value"])
        ),
        Case::new(
            "lokr of products",
            LokrConfig::new(1).with_alpha(4.0).with_decompose_both(true)
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
                .with_rank_pattern("query", 3)
        ),
        Case::new(
            "krona",
            LokrConfig::krona(2.0).with_targets(["query", "value", "dense"])
        ),
        Case::new("krona beside feed-forward", KronaBlockConfig::new(2.0)),
        Case::new(
            "krona beside feed-forward, without a residual, with a head",
            KronaBlockConfig::new(0.7)
                .with_residual(false)
                .with_modules_to_save(["classifier"])
        ),
        Case::new("hra", HraConfig::new(4).with_targets(["query", "value"])),
        Case::new(
            "hra with biases and a head",
            HraConfig::new(6)
                .with_targets(["value", "dense"])
                .with_bias(Bias::All)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "hra of a convolution",
            HraConfig::new(6).with_targets(["convolution", "query", "dense"])
        ),
        Case::new(
            "miss of a rank that divides no width",
            MissConfig::new(5).with_miss_dropout(0.1)
        ),
        Case::new(
            "miss mini",
            MissConfig::mini(4, 8)
                .with_targets(["value", "dense"])
                .with_bias(Bias::Adapted)
        ),
        Case::new(
            "miss bat",
            MissConfig::bat(4).with_targets(["query", "value"])
        ),
        Case::new(
            "adalora",
            AdaLoraConfig::new(4, 2)
                .with_lora_alpha(64.0)
                .with_targets(["query", "value"])
        ),
        Case::new(
            "adalora with dropout, biases and a head",
            AdaLoraConfig::new(3, 2)
                .with_lora_alpha(32.0)
                .with_lora_dropout(0.1)
                .with_bias(Bias::Adapted)
                .with_targets(["query", "key", "value", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new("hira", HiraConfig::new(8).with_targets(["query", "value"])),
        Case::new(
            "hira gaussian, dropout, pattern, embedding, head",
            HiraConfig::new(4)
                .with_init_weights("gaussian")
                .with_hira_dropout(0.1)
                .with_rank_pattern("dense", 6)
                .with_targets(["word_embeddings", "query", "dense"])
                .with_task_type("SEQ_CLS")
        ),
        Case::new(
            "hira of a convolution, with dropout",
            HiraConfig::new(4).with_hira_dropout(0.1).with_targets([
                "convolution",
                "value",
                "dense"
            ])
        ),
        Case::new(
            "said",
            SaidConfig::new(200).with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "did of embeddings, with a head",
            SaidConfig::new(300)
                .with_structure_aware(false)
                .with_seed(5)
                .with_targets(["word_embeddings", "query", "value", "dense"])
                .with_modules_to_save(["classifier"])
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
                .with_targets(["query", "dense"])
        ),
        Case::new(
            "oft, dropout and biases",
            OftConfig::new(16)
                .with_use_cayley_neumann(false)
                .with_module_dropout(0.5)
                .with_bias(Bias::Adapted)
                .with_targets(["dense"])
        ),
        Case::new(
            "oft of a convolution and a table, with dropout",
            OftConfig::new(4)
                .with_module_dropout(0.4)
                .with_bias(Bias::All)
                .with_targets(["convolution", "word_embeddings", "query", "dense"])
        ),
        Case::new(
            "boft of a convolution, with dropout",
            BoftConfig::new(2)
                .with_boft_n_butterfly_factor(2)
                .with_boft_dropout(0.3)
                .with_targets(["convolution", "query", "dense"])
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
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "psoft",
            PsoftConfig::new(6)
                .with_psoft_alpha(9.0)
                .with_targets(["query", "value"])
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
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "psoft, a free matrix",
            PsoftConfig::new(8)
                .with_psoft_orth(false)
                .with_psoft_mag_b(false)
                .with_targets(["value", "dense"])
        ),
        Case::new(
            "glora",
            GloraConfig::new(4).with_targets(["query", "value", "dense"])
        ),
        Case::new(
            "glora of vectors, biases and a head",
            GloraConfig::new(1)
                .with_config_a_b(GloraForm::Vector)
                .with_config_c(GloraForm::Vector)
                .with_config_d_e(GloraForm::Vector)
                .with_bias(Bias::Adapted)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "glora of the bias alone",
            GloraConfig::new(3)
                .with_config_a_b(GloraForm::None)
                .with_targets(["key", "dense"])
        ),
        Case::new(
            "glora of constants",
            GloraConfig::new(1)
                .with_config_a_b(GloraForm::Constant)
                .with_config_c(GloraForm::None)
                .with_targets(["query", "value", "dense"])
        ),
        Case::new(
            "frod",
            FrodConfig::new(0.02).with_targets(["query", "value", "dense"])
        ),
        Case::new(
            "frod, dense, with dropout, biases and a head",
            FrodConfig::new(0.3)
                .with_regularization_alpha(0.1)
                .with_frod_dropout(0.1)
                .with_bias(Bias::Adapted)
                .with_targets(["key", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "osf",
            OsfConfig::new().with_targets(["query", "value", "dense"])
        ),
        Case::new(
            "osf, shares and numbers, with a head",
            OsfConfig::new()
                .with_effective_rank(0.75)
                .with_rank_pattern("query", 5_usize)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "c3a",
            C3aConfig::new(4).with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "c3a, patterns",
            C3aConfig::new(8)
                .with_block_size_pattern("query", 32)
                .with_block_size_pattern(r"layer\.1\..*", 2)
                .with_init_weights(InitWeights::Named("gaussian".into()))
                .with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "c3a with a head",
            C3aConfig::new(16)
                .with_init_weights(InitWeights::Named("kaiming_uniform".into()))
                .with_targets(["value", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "waveft",
            // With 25 the change would be several times the tiny model's weights, which rounds as FourierFT's does.
            WaveFtConfig::new(60)
                .with_scaling(8.0)
                .with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "waveft of longer filters, patterns, a head",
            WaveFtConfig::new(40)
                .with_scaling(6.0)
                .with_wavelet_family("coif1")
                .with_random_loc_seed(-3)
                .with_n_frequency_pattern("query", 200)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "waveft without a transform, in proportion, biases",
            WaveFtConfig::new(50)
                .with_scaling(7.0)
                .with_use_idwt(false)
                .with_proportional_parameters(true)
                .with_bias(Bias::All)
                .with_targets(["value", "dense"])
        ),
        Case::new(
            "fourierft",
            FourierFtConfig::new(40).with_targets(["query", "value"])
        ),
        Case::new(
            "fourierft, low rank",
            // A spectrum starts as normal numbers: with 600 the change would be fifty times the tiny model's
            // weights, and rounding alone would make another model.
            FourierFtConfig::new(7)
                .with_scaling(150.0)
                .with_targets(["query", "key", "value", "dense"])
        ),
        Case::new(
            "fourierft, patterns and a head",
            FourierFtConfig::new(7)
                .with_scaling(300.0)
                .with_random_loc_seed(3)
                .with_n_frequency_pattern("query", 90)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "gralora",
            GraLoraConfig::new(4)
                .with_alpha(12.0)
                .with_targets(["query", "value"])
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
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "delora",
            DeLoraConfig::new(4)
                .with_delora_lambda(0.7)
                .with_targets(["query", "value"])
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
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "deft",
            DeftConfig::new(4)
                .with_alpha(10.0)
                .with_targets(["query", "value"])
        ),
        Case::new(
            "deft of projections, with dropout, biases and a head",
            DeftConfig::new(3)
                .with_decomposition_method(DeftDecomposition::Qr)
                .with_alpha(6.0)
                .with_deft_dropout(0.1)
                .with_bias(Bias::All)
                .with_targets(["query", "dense", "lm_head"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "adamss",
            AdamssConfig::new(8, 3, 2).with_targets(["query", "value"])
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
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "peanut",
            PeanutConfig::new(4)
                .with_scaling(1.5)
                .with_targets(["query", "value"])
        ),
        Case::new(
            "peanut, two levels deep, with a head",
            PeanutConfig::new(6)
                .with_depth(2)
                .with_act_fn(Activation::Gelu)
                .with_scaling(0.7)
                .with_targets(["query", "dense", "lm_head"])
                .with_modules_to_save(["classifier"])
        ),
    ]
);

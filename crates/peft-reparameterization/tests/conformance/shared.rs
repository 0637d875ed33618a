//! Methods whose layers share parameters, and mixtures.

use peft_conformance::Case;
use peft_reparameterization::{
    AdapterHubLora, AdapterHubMtl, AdapterHubVera, Bias, LilyConfig, LoraConfig, MtlLoraConfig,
    PolyConfig, PveraConfig, RandLoraConfig, TaskSpecificMatrix, TinyLoraConfig, UniLoraConfig,
    VbLoraConfig, VeraConfig,
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = mixtures_and_matrices();
    cases.extend(vectors());
    cases
}

fn mixtures_and_matrices() -> Vec<Case> {
    vec![
        Case::new(
            "lily, every two layers, names that overlap",
            LilyConfig::new(4)
                .with_stride_a(2)
                .with_num_b(3)
                .with_scaling(1.5)
                .with_targets(["query", "dense", "output.dense"]),
        ),
        Case::new(
            "lily, all linear, with a head",
            LilyConfig::new(2).with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "poly, two tasks, two splits",
            PolyConfig::new(4, 2)
                .with_n_skills(3)
                .with_n_splits(2)
                .with_targets(["query", "value", "dense"]),
        ),
        Case::new(
            "poly without noise, with a head",
            PolyConfig::new(3, 4)
                .with_deterministic_router(true)
                .with_targets(["value", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "mtl-lora, two tasks",
            MtlLoraConfig::new(4, 2)
                .with_alpha(12.0)
                .with_n_up_projection(3)
                .with_targets(["query", "value"]),
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
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "mtl-lora, AdapterHub's layout",
            MtlLoraConfig::new(4, 1)
                .with_alpha(12.0)
                .with_n_up_projection(3)
                .with_weights_sharpness(0.5)
                .with_adapterhub(AdapterHubMtl::default()),
        ),
        Case::new(
            "lora in AdapterHub's layout, magnitudes",
            LoraConfig::new(3)
                .with_alpha(6.0)
                .with_use_dora(true)
                .with_adapterhub(AdapterHubLora::default()),
        ),
        Case::new(
            "lora in AdapterHub's layout, magnitudes, gates, dropout and a head",
            LoraConfig::new(3)
                .with_lora_dropout(0.1)
                .with_use_dora(true)
                .with_use_gating(true)
                .with_adapterhub(AdapterHubLora {
                    intermediate_lora: true,
                    leave_out: vec![0],
                    ..AdapterHubLora::default()
                })
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "vera, AdapterHub's layout",
            VeraConfig::new(3).with_adapterhub(AdapterHubVera {
                alpha: 6.0,
                vera_b: 0.5,
                ..AdapterHubVera::default()
            }),
        ),
        Case::new(
            "vera, AdapterHub's layout, with magnitudes, gates and dropout",
            VeraConfig::new(3)
                .with_vera_dropout(0.1)
                .with_adapterhub(AdapterHubVera {
                    use_gating: true,
                    use_dora: true,
                    ..AdapterHubVera::default()
                }),
        ),
        Case::new(
            "vera, all linear",
            VeraConfig::new(12)
                .with_d_initial(1.0)
                .with_targets(["query", "key", "value", "dense"]),
        ),
        Case::new(
            "vera, drawn from its key, dropout, head, biases",
            VeraConfig::new(40)
                .with_projection_prng_key(7)
                .with_save_projection(false)
                .with_vera_dropout(0.1)
                .with_targets(["query", "dense"])
                .with_bias(Bias::Adapted)
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "randlora, query and value",
            RandLoraConfig::new(8)
                .with_randlora_alpha(16.0)
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "randlora, sparse, several shapes",
            RandLoraConfig::new(5)
                .with_randlora_alpha(20.0)
                .with_sparse(true)
                .with_targets(["query", "key", "value", "dense"]),
        ),
    ]
}

fn vectors() -> Vec<Case> {
    vec![
        Case::new(
            "randlora, very sparse, unsaved, dropout, head",
            RandLoraConfig::new(6)
                .with_randlora_alpha(20.0)
                .with_very_sparse(true)
                .with_save_projection(false)
                .with_projection_prng_key(-3)
                .with_randlora_dropout(0.1)
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "vb-lora, all linear",
            VbLoraConfig::new(3, 12, 16)
                .with_topk(3)
                .with_init_vector_bank_bound(0.2)
                .with_init_logits_std(0.1)
                .with_targets(["query", "key", "value", "dense"]),
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
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "vblora, chosen weights saved only",
            VbLoraConfig::new(4, 20, 8)
                .with_topk(3)
                .with_init_vector_bank_bound(0.1)
                .with_save_only_topk_weights(true)
                .with_targets(["query", "dense"]),
        ),
        Case::new(
            "uni-lora, all linear",
            UniLoraConfig::new(3, 100)
                .with_init_theta_d_bound(0.8)
                .with_targets(["query", "key", "value", "dense"]),
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
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "tinylora, all linear",
            TinyLoraConfig::new(20)
                .with_r(4)
                .with_targets(["query", "key", "value", "dense"]),
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
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "pvera, all linear",
            PveraConfig::new(12)
                .with_d_initial(1.0)
                .with_targets(["query", "key", "value", "dense"]),
        ),
        Case::new(
            "pvera, drawn from its key, dropout, head, biases",
            PveraConfig::new(40)
                .with_projection_prng_key(7)
                .with_save_projection(false)
                .with_pvera_dropout(0.1)
                .with_targets(["query", "dense"])
                .with_bias(Bias::Adapted)
                .with_modules_to_save(["classifier"]),
        ),
    ]
}

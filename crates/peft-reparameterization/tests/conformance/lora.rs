//! LoRA and its variants.

use peft_conformance::Case;
use peft_reparameterization::{
    BdLoraConfig, Bias, KasaConfig, LoftqConfig, LoraConfig, MontecloraConfig, VeloraConfig,
    VeloraInit,
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = plain_and_dora();
    cases.extend(variants());
    cases
}

fn plain_and_dora() -> Vec<Case> {
    vec![
        Case::new(
            "query and value",
            LoraConfig::new(4)
                .with_alpha(12.0)
                .with_targets(["query", "value"]),
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
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "embedding and biases",
            LoraConfig::new(3)
                .with_targets(["word_embeddings", "value"])
                .with_bias(Bias::All)
                .with_task_type("SEQ_CLS"),
        ),
        Case::new(
            "dora, also of an embedding",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_use_dora(true)
                .with_targets(["word_embeddings", "value", "dense"]),
        ),
        Case::new(
            "dora with dropout over pissa",
            LoraConfig::new(3)
                .with_use_dora(true)
                .with_lora_dropout(0.1)
                .with_init_lora_weights("pissa")
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "a bias for B, A frozen",
            LoraConfig::new(4)
                .with_alpha(16.0)
                .with_lora_bias(true)
                .with_freeze_a(true)
                .with_targets(["query", "value", "dense"]),
        ),
        Case::new(
            "a tied head and a convolution",
            LoraConfig::new(3)
                .with_alpha(6.0)
                .with_targets(["query", "lm_head", "convolution"]),
        ),
        Case::new(
            "dora of a convolution, with dropout",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_use_dora(true)
                .with_lora_dropout(0.1)
                .with_targets(["convolution", "value", "dense"]),
        ),
        Case::new(
            "a table that its tied head follows",
            LoraConfig::new(3)
                .with_alpha(6.0)
                .with_ensure_weight_tying(true)
                .with_targets(["value", "lm_head"]),
        ),
    ]
}

fn variants() -> Vec<Case> {
    vec![
        Case::new(
            "token rows",
            LoraConfig::new(3)
                .with_alpha(6.0)
                .with_trainable_token_indices([3, 50, 7])
                .with_targets(["query", "value"]),
        ),
        Case::new(
            "olora",
            LoraConfig::new(2)
                .with_alpha(3.0)
                .with_init_lora_weights("olora")
                .with_targets(["query", "dense"]),
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
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "kasa",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_kasa_config(KasaConfig::default())
                .with_targets(["query", "dense"]),
        ),
        Case::new(
            "kasa with dropout, biases and a head",
            LoraConfig::new(2)
                .with_alpha(5.0)
                .with_lora_dropout(0.1)
                .with_kasa_config(KasaConfig::default())
                .with_bias(Bias::Adapted)
                .with_targets(["value"])
                .with_modules_to_save(["classifier"]),
        ),
        Case::new(
            "loftq in three iterations, dropout",
            LoraConfig::new(3)
                .with_alpha(6.0)
                .with_lora_dropout(0.1)
                .with_init_lora_weights("loftq")
                .with_loftq_config(LoftqConfig::new(3))
                .with_targets(["query", "dense"]),
        ),
        Case::new(
            "mica, also of a table",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_init_lora_weights("mica")
                .with_targets(["word_embeddings", "value", "dense"]),
        ),
        Case::new(
            "alora, dropout and a head",
            LoraConfig::new(3)
                .with_alpha(7.0)
                .with_lora_dropout(0.1)
                // The first row has it as its second token, the others do not have it.
                .with_alora_invocation_tokens([39])
                .with_targets(["query", "value"])
                .with_modules_to_save(["classifier"]),
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
                .with_targets(["query", "dense"]),
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
                .with_targets(["query", "dense"]),
        ),
    ]
}

//! LoRA and its variants, in Hugging Face PEFT's layout.

use peft::reparameterization::{
    BdLoraConfig, Bias, CordaConfig, CordaMethod, KasaConfig, LoftqConfig, LoraConfig,
    LoraGaConfig, LoraGaDirection, LoraGaScale, MontecloraConfig, VeloraConfig,
};

use crate::{Cases, TARGETS};

pub(crate) fn cases() -> Cases {
    let mut cases = plain();
    cases.extend(variants());
    cases
}

fn plain() -> Cases {
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
fn variants() -> Cases {
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

//! The battery, on LoRA's variants.

use peft_core::ConfigExt as _;
use peft_reparameterization::{Bias, LoraConfig};

peft_conformance::battery!(vec![
    Case::new(
        "query and value",
        LoraConfig::new(4)
            .with_alpha(12.0)
            .with_targets(["query", "value"])
    ),
    Case::new(
        "all linear",
        LoraConfig::new(2)
            .with_alpha(8.0)
            .with_excluded(["pooler.dense"])
    ),
    Case::new(
        "rslora with dropout, patterns and a head",
        LoraConfig::new(4)
            .with_alpha(5.0)
            .with_rslora(true)
            .with_dropout(0.1)
            .with_targets(r".*\.(query|dense)")
            .with_excluded("bert.pooler.*")
            .with_rank_for("query", 3)
            .with_alpha_for(r"layer\.1\..*", 9.0)
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
            .with_dora(true)
            .with_targets(["word_embeddings", "value", "dense"])
            .with_excluded(["pooler.dense"])
    ),
    Case::new(
        "dora with dropout over pissa",
        LoraConfig::new(3)
            .with_dora(true)
            .with_dropout(0.1)
            .with_init("pissa")
            .with_targets(["query", "value"])
    ),
    Case::new(
        "a bias for B, A frozen",
        LoraConfig::new(4)
            .with_alpha(16.0)
            .with_lora_bias(true)
            .with_frozen_a(true)
            .with_targets(["query", "value", "dense"])
            .with_excluded(["pooler.dense"])
    ),
    Case::new(
        "olora",
        LoraConfig::new(2)
            .with_alpha(3.0)
            .with_init("olora")
            .with_targets(["query", "dense"])
            .with_excluded(["pooler.dense"])
    ),
]);

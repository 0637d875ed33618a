//! The conformance suite, on unions.

use peft_additive::{BottleneckConfig, Ia3Config};
use peft_hybrid::{METHODS, UnionConfig, gated};
use peft_reparameterization::{AdapterHubLora, LoraConfig};
use peft_selective::BitFitConfig;
use peft_soft_prompt::{AdapterHubPrefixConfig, AdapterHubPrompt, PromptTuningConfig};

/// LoRA in AdapterHub's layout, on more than it is by default.
fn lora() -> LoraConfig {
    LoraConfig::new(3)
        .with_alpha(6.0)
        .with_adapterhub(AdapterHubLora {
            intermediate_lora: true,
            ..AdapterHubLora::default()
        })
}

fn prefix() -> AdapterHubPrefixConfig {
    AdapterHubPrefixConfig::new()
        .with_prefix_length(3)
        .with_bottleneck_size(8)
}

peft_conformance::conformance_suite!(
    METHODS,
    vec![
        Case::new(
            "mix and match",
            UnionConfig::new()
                .with(prefix())
                .with(BottleneckConfig::scaled_parallel().with_reduction_factor(4.0))
        ),
        Case::new(
            "unipelt",
            gated(
                prefix(),
                BottleneckConfig::pfeiffer().with_reduction_factor(4.0),
                lora()
            )
        ),
        Case::new(
            "a prompt, a bottleneck and LoRA with gates, with a head",
            UnionConfig::new()
                .with(PromptTuningConfig::new(3).with_adapterhub(AdapterHubPrompt::default()))
                .with(BottleneckConfig::houlsby().with_reduction_factor(4.0))
                .with(lora().with_use_gating(true))
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "of weights alone",
            UnionConfig::new()
                .with(LoraConfig::new(2).with_targets(["query"]))
                .with(
                    Ia3Config::new()
                        .with_targets(["key"])
                        .with_feedforward_modules(Vec::<String>::new())
                )
        ),
        Case::new(
            "methods that AdapterHub does not have",
            UnionConfig::new()
                .with(LoraConfig::new(2).with_targets(["query"]))
                .with(
                    Ia3Config::new()
                        .with_targets(["key"])
                        .with_feedforward_modules(Vec::<String>::new())
                )
                .with(BitFitConfig::new().with_targets(["intermediate.dense"]))
                .with(BottleneckConfig::pfeiffer().with_reduction_factor(4.0))
        ),
    ]
);

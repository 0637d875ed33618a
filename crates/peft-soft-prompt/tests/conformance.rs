//! The conformance suite, on soft prompts.

use peft_soft_prompt::{METHODS, PrefixInit, PrefixTuningConfig, PromptInit, PromptTuningConfig};

peft_conformance::conformance_suite!(
    METHODS,
    vec![
        Case::new("prefix", PrefixTuningConfig::new(4)),
        Case::new(
            "projected prefix",
            PrefixTuningConfig::new(4).with_projection(24)
        ),
        Case::new(
            "zero prefix, with a head",
            PrefixTuningConfig::new(3)
                .with_init_weights(PrefixInit::Zero)
                .with_modules_to_save(["classifier"])
        ),
        Case::new("random", PromptTuningConfig::new(5)),
        Case::new(
            "sampled vocabulary",
            PromptTuningConfig::new(3).with_prompt_tuning_init(PromptInit::SampleVocab)
        ),
        Case::new(
            "text, with a head",
            PromptTuningConfig::new(4)
                .with_text("is it good", [5, 17, 60])
                .with_modules_to_save(["classifier"])
        ),
    ]
);

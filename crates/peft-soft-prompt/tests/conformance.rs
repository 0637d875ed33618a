//! The conformance suite, on soft prompts.

use peft_soft_prompt::{
    METHODS, PrefixInit, PrefixTuningConfig, PromptEncoderConfig, PromptInit, PromptTuningConfig,
};

peft_conformance::conformance_suite!(
    METHODS,
    vec![
        Case::new(
            "through an mlp, with a head",
            PromptEncoderConfig::new(4)
                .with_encoder_hidden_size(24)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "through an lstm",
            PromptEncoderConfig::new(3)
                .with_lstm(2)
                .with_encoder_hidden_size(8)
        ),
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

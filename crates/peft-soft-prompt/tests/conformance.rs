//! The conformance suite, on soft prompts.

use peft_soft_prompt::{
    Activation, AdapterHubPrefixConfig, AdaptionPromptConfig, CartridgeConfig, CptConfig,
    IntrinsicPromptConfig, LatePromptConfig, METHODS, MultitaskPromptTuningConfig, NpgToken,
    PrefixInit, PrefixTuningConfig, PromptEncoderConfig, PromptGeneratorType, PromptInit,
    PromptTuningConfig,
};

peft_conformance::conformance_suite!(
    METHODS,
    vec![
        // Example by example: template, input twice, template of the label, label.
        Case::new(
            "context, with a head",
            CptConfig::new(vec![5, 17, 60, 8, 30, 12])
                .with_cpt_tokens_type_mask(vec![1, 2, 2, 3, 4, 0])
                .with_opt_projection_epsilon(40.0)
                .with_opt_projection_format_epsilon(20.0)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "context",
            CptConfig::new(vec![5, 17, 60, 8]).with_opt_projection_format_epsilon(30.0)
        ),
        Case::new("decoded", IntrinsicPromptConfig::new(4, 12)),
        Case::new(
            "decoded, with a head",
            IntrinsicPromptConfig::new(3, 6)
                .with_decoder_hidden_size(20)
                .with_start(vec![0.5, -1.0, 2.0, 0.25, 0.0, -0.5])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "two tasks",
            MultitaskPromptTuningConfig::new(4, 2).with_num_ranks(2)
        ),
        Case::new(
            "two tasks from a text, with a head",
            MultitaskPromptTuningConfig::new(3, 2)
                .with_text("is it good", [5, 17, 60])
                .with_modules_to_save(["classifier"])
        ),
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
        Case::new("one layer's prompt", AdaptionPromptConfig::new(5, 1)),
        Case::new(
            "all layers' prompts, with a head",
            AdaptionPromptConfig::new(3, 2)
                .with_target_modules("self".to_string())
                .with_modules_to_save(["classifier"])
        ),
        Case::new("cartridge", CartridgeConfig::new(4)),
        Case::new(
            "nothing frozen, with a head",
            CartridgeConfig::new(3)
                .with_num_frozen_tokens(0)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "AdapterHub's prefix, gates of keys and values, dropout",
            AdapterHubPrefixConfig::new()
                .with_prefix_length(4)
                .with_bottleneck_size(12)
                .with_non_linearity(Activation::Swish)
                .with_dropout(0.1)
                .with_use_gating(true)
                .with_shared_gating(false)
        ),
        Case::new(
            "AdapterHub's flat prefix of the second block, with a head",
            AdapterHubPrefixConfig::new()
                .with_prefix_length(3)
                .with_flat(true)
                .with_leave_out([0])
                .with_use_gating(true)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "late prompt of a token, dropout, with a head",
            LatePromptConfig::new()
                .with_num_prompt_tokens(3)
                .with_proj_down_size(8)
                .with_dropout(0.1)
                .with_npg_token(NpgToken::Last)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "late prompt of means",
            LatePromptConfig::new()
                .with_generator_type(PromptGeneratorType::Appg)
                .with_proj_down_size(8)
        ),
        Case::new(
            "late prompt of maxima",
            LatePromptConfig::new()
                .with_generator_type(PromptGeneratorType::Mppg)
                .with_add_prompt_layer(0)
                .with_proj_down_size(8)
        ),
        Case::new(
            "late prompt",
            LatePromptConfig::new().with_generator_type(PromptGeneratorType::Fixed)
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

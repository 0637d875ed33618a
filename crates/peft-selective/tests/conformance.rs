//! The conformance suite, on selections. Full fine-tuning keeps no base and is no adapter: see
//! `reference.rs`.

use peft_selective::{
    BitFitConfig, HeadOnlyConfig, LnTuningConfig, METHODS, MaskFn, Part, PartialConfig,
    ShiraConfig, TrainableTokensConfig,
};

const TOKENS: [usize; 9] = [3, 8, 9, 39, 41, 40, 70, 72, 71];

peft_conformance::conformance_suite!(
    METHODS,
    vec![
        Case::new("bitfit", BitFitConfig::new()),
        Case::new(
            "bitfit on two layers",
            BitFitConfig::new().with_targets(["query", "intermediate.dense"])
        ),
        Case::new(
            "bitfit with a head",
            BitFitConfig::new().with_modules_to_save(["classifier"])
        ),
        Case::new("bitfit of queries and mlps", BitFitConfig::query_and_mlp()),
        Case::new("LayerNorm tuning", LnTuningConfig::new()),
        Case::new(
            "LayerNorm tuning of some norms, with a head",
            LnTuningConfig::new()
                .with_targets(["output.LayerNorm"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new("partial, all but heads", PartialConfig::new()),
        Case::new(
            "partial, the last block with a head",
            PartialConfig::last(1).with_modules_to_save(["classifier"])
        ),
        Case::new(
            "partial, norms and attention of the first block",
            PartialConfig::first(1).with_parts([Part::Norms, Part::Attention])
        ),
        Case::new("partial, embeddings", PartialConfig::embeddings()),
        Case::new(
            "partial, named layers of any kind",
            PartialConfig::new().with_targets(["convolution", "query", "LayerNorm", "classifier"])
        ),
        // Tokens of the batch, and one of the head's labels.
        Case::new("trainable tokens", TrainableTokensConfig::new(TOKENS)),
        Case::new(
            "trainable tokens of a table that is no head",
            TrainableTokensConfig::new([0, 1, 2, 3, 4])
                .with_targets(["position_embeddings"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new("shira", ShiraConfig::new(2)),
        Case::new(
            "shira, a mask by magnitude",
            ShiraConfig::new(3)
                .with_mask_type("magnitude")
                .with_mask_fn(MaskFn::magnitude())
                .with_random_seed(5)
                .with_targets(["query", "intermediate.dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new("head only", HeadOnlyConfig::new()),
    ]
);

//! The conformance suite, on selections. Full fine-tuning keeps no base and is no adapter: see
//! `reference.rs`.

use peft_selective::{BitFitConfig, HeadOnlyConfig, METHODS};

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
        Case::new("head only", HeadOnlyConfig::new()),
    ]
);

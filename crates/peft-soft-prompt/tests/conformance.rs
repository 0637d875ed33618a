//! The battery, on soft prompts.

use peft_core::ConfigExt as _;
use peft_soft_prompt::PromptTuningConfig;

peft_conformance::battery!(vec![
    Case::new("random", PromptTuningConfig::new(5)),
    Case::new(
        "sampled vocabulary",
        PromptTuningConfig::new(3).with_sampled_vocabulary()
    ),
    Case::new(
        "text, with a head",
        PromptTuningConfig::new(4)
            .with_text("is it good", [5, 17, 60])
            .with_modules_to_save(["classifier"])
    ),
]);

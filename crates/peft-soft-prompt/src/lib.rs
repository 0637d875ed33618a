#![doc = include_str!("../README.md")]

mod prefix_tuning;
mod prompt_tuning;

use peft_core::method::MethodInfo;

pub use prefix_tuning::{PREFIX_TUNING, Prefix, PrefixEncoder, PrefixInit, PrefixTuningConfig};
pub use prompt_tuning::{PROMPT_TUNING, PromptInit, PromptTuningConfig, SoftPrompt};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&PREFIX_TUNING, &PROMPT_TUNING];

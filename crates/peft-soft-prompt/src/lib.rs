#![doc = include_str!("../README.md")]

mod p_tuning;
mod prefix_tuning;
mod prompt_adapterhub;
mod prompt_encoder;
mod prompt_layouts;
mod prompt_tuning;

use peft_core::method::MethodInfo;

pub use p_tuning::{EncodedPrompt, EncoderType, P_TUNING, PromptEncoderConfig};
pub use prefix_tuning::{
    PREFIX_TUNING, Prefix, PrefixEncoder, PrefixForm, PrefixInit, PrefixTuningConfig,
};
pub use prompt_adapterhub::AdapterHubPrompt;
pub use prompt_encoder::{BiLstmLayer, LstmDirection, MlpLayer, PromptEncoder};
pub use prompt_tuning::{PROMPT_TUNING, PromptInit, PromptTuningConfig, SoftPrompt};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&P_TUNING, &PREFIX_TUNING, &PROMPT_TUNING];

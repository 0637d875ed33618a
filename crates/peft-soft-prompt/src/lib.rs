#![doc = include_str!("../README.md")]

mod adapterhub_prefix;
mod adaption_prompt;
mod cartridge;
mod key_value;
mod late_prompt;
mod p_tuning;
mod prefix_encoder;
mod prefix_tuning;
mod prompt_encoder;
mod prompt_tuning;

use peft_core::method::MethodInfo;

pub use adapterhub_prefix::{AdapterHubForm, AdapterHubPrefix, AdapterHubPrefixConfig, PrefixGate};
pub use adaption_prompt::{ADAPTION_PROMPT, AdaptionPrompt, AdaptionPromptConfig};
pub use cartridge::{CARTRIDGE, Cartridge, CartridgeConfig};
pub use late_prompt::{
    LATE_PROMPT_TUNING, LatePrompt, LatePromptConfig, NpgToken, PromptGenerator,
    PromptGeneratorType,
};
pub use p_tuning::{EncodedPrompt, EncoderType, P_TUNING, PromptEncoderConfig};
pub use prefix_encoder::{PrefixActivation, PrefixEncoder};
pub use prefix_tuning::{PREFIX_TUNING, Prefix, PrefixForm, PrefixInit, PrefixTuningConfig};
pub use prompt_encoder::{BiLstmLayer, LstmDirection, MlpLayer, PromptEncoder};
pub use prompt_tuning::{PROMPT_TUNING, PromptInit, PromptTuningConfig, SoftPrompt};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[
    &ADAPTION_PROMPT,
    &CARTRIDGE,
    &LATE_PROMPT_TUNING,
    &P_TUNING,
    &PREFIX_TUNING,
    &PROMPT_TUNING,
];

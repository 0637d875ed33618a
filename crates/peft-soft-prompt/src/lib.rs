#![doc = include_str!("../README.md")]

mod adapterhub_prefix;
mod adaption_prompt;
mod cartridge;
mod cpt;
mod intrinsic_prompt;
mod key_value;
mod late_prompt;
mod lookup;
mod model_name;
mod multitask_prompt_tuning;
mod p_tuning;
mod prefix_encoder;
mod prefix_layouts;
mod prefix_tuning;
mod prompt_adapterhub;
mod prompt_encoder;
mod prompt_init;
mod prompt_layouts;
mod prompt_transfer;
mod prompt_tuning;
mod start;
mod trained_prompt;
mod vocabulary;

use peft_core::method::MethodInfo;

pub use adapterhub_prefix::{AdapterHubForm, AdapterHubPrefix, AdapterHubPrefixConfig, PrefixGate};
pub use adaption_prompt::{ADAPTION_PROMPT, AdaptionPrompt, AdaptionPromptConfig};
pub use cartridge::{CARTRIDGE, Cartridge, CartridgeConfig};
pub use cpt::{CPT, ContextForm, ContextPrompt, CptConfig, MovedContext, WeightedLoss};
pub use intrinsic_prompt::{
    FitConfig, INTRINSIC_PROMPT, IntrinsicPrompt, IntrinsicPromptConfig, PromptAutoencoder,
    PromptDecoder,
};
pub use late_prompt::{
    LATE_PROMPT_TUNING, LatePrompt, LatePromptConfig, NpgToken, PromptGenerator,
    PromptGeneratorType,
};
pub use lookup::{NearToken, Nearness, PromptLookup};
pub use multitask_prompt_tuning::{
    MULTITASK_PROMPT_TUNING, MultitaskPromptInit, MultitaskPromptTuningConfig, MultitaskSource,
    TaskPrompts,
};
pub use p_tuning::{EncodedPrompt, EncoderType, P_TUNING, PromptEncoderConfig};
pub use peft_core::method::Activation;
pub use prefix_encoder::PrefixEncoder;
pub use prefix_tuning::{PREFIX_TUNING, Prefix, PrefixForm, PrefixInit, PrefixTuningConfig};
pub use prompt_adapterhub::AdapterHubPrompt;
pub use prompt_encoder::{BiLstmLayer, LstmDirection, MlpLayer, PromptEncoder};
pub use prompt_init::PromptInit;
pub use prompt_transfer::Similarity;
pub use prompt_tuning::{PROMPT_TUNING, PromptTuningConfig, SoftPrompt};
pub use trained_prompt::TrainedPrompt;

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[
    &ADAPTION_PROMPT,
    &CARTRIDGE,
    &CPT,
    &INTRINSIC_PROMPT,
    &LATE_PROMPT_TUNING,
    &MULTITASK_PROMPT_TUNING,
    &P_TUNING,
    &PREFIX_TUNING,
    &PROMPT_TUNING,
];

#![doc = include_str!("../README.md")]

mod cpt;
mod intrinsic_prompt;
mod lookup;
mod multitask_prompt_tuning;
mod p_tuning;
mod prefix_tuning;
mod prompt_encoder;
mod prompt_tuning;
mod start;
mod trained_prompt;
mod vocabulary;

use peft_core::method::MethodInfo;

pub use cpt::{CPT, ContextForm, ContextPrompt, CptConfig, MovedContext, WeightedLoss};
pub use intrinsic_prompt::{
    FitConfig, INTRINSIC_PROMPT, IntrinsicPrompt, IntrinsicPromptConfig, PromptAutoencoder,
    PromptDecoder,
};
pub use lookup::{NearToken, Nearness, PromptLookup};
pub use multitask_prompt_tuning::{
    MULTITASK_PROMPT_TUNING, MultitaskPromptInit, MultitaskPromptTuningConfig, MultitaskSource,
    TaskPrompts,
};
pub use p_tuning::{EncodedPrompt, EncoderType, P_TUNING, PromptEncoderConfig};
pub use prefix_tuning::{
    PREFIX_TUNING, Prefix, PrefixEncoder, PrefixForm, PrefixInit, PrefixTuningConfig,
};
pub use prompt_encoder::{BiLstmLayer, LstmDirection, MlpLayer, PromptEncoder};
pub use prompt_tuning::{PROMPT_TUNING, PromptInit, PromptTuningConfig, SoftPrompt};
pub use trained_prompt::{Similarity, TrainedPrompt};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[
    &CPT,
    &INTRINSIC_PROMPT,
    &MULTITASK_PROMPT_TUNING,
    &P_TUNING,
    &PREFIX_TUNING,
    &PROMPT_TUNING,
];

//! Methods that train what goes into a model instead of the model.
//!
//! | method | definition | paper | configuration |
//! |---|---|---|---|
//! | prompt tuning | [P; E(x)] | [Lester et al. 2021](https://arxiv.org/abs/2104.08691) | [`PromptTuningConfig`] |
//!
//! The model must have a [`Site`](peft_core::Site) after its embeddings; those of `peft-models`
//! do. Checkpoints are Hugging Face PEFT's, read and written.

mod prompt_tuning;

use peft_core::MethodInfo;

pub use prompt_tuning::{PROMPT_TUNING, PromptInit, PromptTuningConfig, SoftPrompt};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&PROMPT_TUNING];

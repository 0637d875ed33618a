//! Methods that train what goes into a model instead of the model.
//!
//! | method | definition | paper | configuration |
//! |---|---|---|---|
//! | prefix tuning | attention over [P_K; K], [P_V; V] | [Li & Liang 2021](https://arxiv.org/abs/2101.00190) | [`PrefixTuningConfig`] |
//! | prompt tuning | [P; E(x)] | [Lester et al. 2021](https://arxiv.org/abs/2104.08691) | [`PromptTuningConfig`] |
//!
//! The model must have a [`Site`](peft_core::Site) after its embeddings (prompts) or in every attention layer
//! (prefixes); those of `peft-models` do. Checkpoints are Hugging Face PEFT's, read and written.

mod prefix_tuning;
mod prompt_tuning;

use peft_core::method::MethodInfo;

pub use prefix_tuning::{PREFIX_TUNING, Prefix, PrefixEncoder, PrefixInit, PrefixTuningConfig};
pub use prompt_tuning::{PROMPT_TUNING, PromptInit, PromptTuningConfig, SoftPrompt};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&PREFIX_TUNING, &PROMPT_TUNING];

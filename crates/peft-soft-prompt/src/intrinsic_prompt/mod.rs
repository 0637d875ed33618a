//! Prompts that are decoded from a few numbers (IPT, intrinsic prompt tuning).

mod autoencoder;
mod config;

pub use autoencoder::{FitConfig, PromptAutoencoder, PromptDecoder};
pub use config::{INTRINSIC_PROMPT, IntrinsicPrompt, IntrinsicPromptConfig};

//! Prompts that are decoded from a few numbers (IPT, intrinsic prompt tuning).

mod autoencoder;
mod config;
mod decoder;

pub use autoencoder::{FitConfig, PromptAutoencoder};
pub use config::{INTRINSIC_PROMPT, IntrinsicPrompt, IntrinsicPromptConfig};
pub use decoder::PromptDecoder;

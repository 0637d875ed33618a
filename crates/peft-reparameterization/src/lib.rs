//! Methods that give the change of a weight a low-dimensional form.
//!
//! | method | W' | paper | configuration |
//! |---|---|---|---|
//! | LoRA | W + s·A·B, s = alpha / r | [Hu et al. 2021](https://arxiv.org/abs/2106.09685) | [`LoraConfig`] |
//!
//! ```
//! use burn::nn::LinearConfig;
//! use burn::prelude::*;
//! use peft_core::PeftModule;
//! use peft_reparameterization::{LoraConfig, METHODS};
//!
//! #[derive(Module, Debug)]
//! struct Net {
//!     query: burn::nn::Linear,
//!     value: burn::nn::Linear,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = peft_core::device::device(peft_core::device::available()[0])?.autodiff();
//! let net = Net {
//!     query: LinearConfig::new(64, 64).init(&device),
//!     value: LinearConfig::new(64, 64).init(&device),
//! };
//!
//! let model = net.attach("mine", &LoraConfig::new(8).with_alpha(16.0).with_targets(["query"]))?;
//! assert_eq!(model.counts().trainable, 8 * (64 + 64));
//!
//! let dir = std::env::temp_dir().join("peft-doc-lora");
//! model.save_adapter("mine", &dir)?;
//! let model = net.load_adapter("mine", &dir, METHODS)?;
//! let plain = model.merge_and_unload()?;
//! # let _ = plain;
//! # Ok(())
//! # }
//! ```

mod combine;
mod dora;
mod eva;
mod family;
mod linalg;
mod lora;
mod lora_config;
mod lora_init;
mod lora_plus;
mod lora_state;

use peft_core::MethodInfo;

pub use combine::{Combination, Extracted, Majority, Rule, add_weighted_adapter, extract_lora};
pub use dora::Magnitude;
pub use eva::eva;
pub use family::Bias;
pub use lora::LORA;
pub use lora_config::{InitLora, LoraConfig};
pub use lora_plus::{LoraPlus, lora_plus};
pub use lora_state::{LoraBias, LoraConv2d, LoraEmbedding, LoraLinear, Removed};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&LORA];

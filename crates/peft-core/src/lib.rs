#![doc = include_str!("../README.md")]

mod adapter;
mod attached;
pub mod checkpoint;
pub mod device;
mod error;
pub mod files;
mod layout;
pub mod method;
mod model;
pub mod nn;
mod slot;
mod upstream;

pub use attached::composition::Composition;
pub use error::{Error, Result};
pub use layout::key_mapping::KeyMapping;
pub use layout::targets::{Selection, Targets};
pub use model::accounting;
pub use model::peft_module::PeftModule;
pub use model::training_hooks::TrainingHooks;
pub use nn::site::{HiddenSite, KeyValueSite, PromptSite};
pub use nn::tied_head::TiedHead;
pub use peft_ops as ops;

/// Weights in a quantized format, in place of a model's dense ones.
pub mod quantize {
    pub use crate::layout::quantizer::{QuantizedLayer, RawTensor, WeightQuantizer};
}

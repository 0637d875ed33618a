//! Adapters for any Burn model: the contract that every method of parameter-efficient fine-tuning
//! implements, and everything that is the same for all of them.
//!
//! This crate knows no method. A method crate (`peft-reparameterization` for LoRA, say) gives a
//! configuration that implements [`Method`](method::Method); [`PeftModule`] puts it on a model:
//!
//! ```text
//! let model = model.attach("sst2", &LoraConfig::new(8))?;
//! println!("{}", model.summary());
//! // train with any Burn optimizer or Learner
//! model.save_adapter("sst2", dir)?;
//! let model = base.load_adapter("sst2", dir, METHODS)?;
//! let model = model.merge_and_unload()?;
//! ```
//!
//! | where a method acts | contract | needs of the model |
//! |---|---|---|
//! | a weight | [`WeightAdapter`](method::WeightAdapter) | nothing; faster where it calls [`AdaptedForward`](nn::AdaptedForward) |
//! | a hidden state | [`HiddenAdapter`](method::HiddenAdapter) | a [`Site`] field at the place |
//! | the input | [`PromptAdapter`](method::PromptAdapter) | a [`Site`] field after the embeddings |
//! | attention's keys and values | [`KeyValueAdapter`](method::KeyValueAdapter) | a [`Site`] field in every attention layer |
//!
//! `docs/architecture.md` has the invariants.

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
mod statistics;
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

/// Statistics of layers' inputs and parameters' gradients, for methods whose initial values or masks depend on data.
///
/// The user runs batches through [`Calibrator::model`](calibration::Calibrator::model) before an adapter is attached,
/// and [`Calibrate::attach_with`](calibration::Calibrate::attach_with) hands the statistics to the method.
pub mod calibration {
    pub use crate::model::calibration::{Calibrate, CalibrationConfig, Calibrator};
    pub use crate::statistics::calibration::Calibration;
    pub use crate::statistics::gradients::GradientStatistics;
    pub use crate::statistics::inputs::InputStatistics;
}

/// Weights in a quantized format, in place of a model's dense ones.
pub mod quantize {
    pub use crate::layout::quantizer::{QuantizedLayer, RawTensor, WeightQuantizer};
}

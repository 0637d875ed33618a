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
mod statistics;
mod upstream;

pub use attached::composition::Composition;
pub use error::{Error, Result};
pub use layout::key_mapping::KeyMapping;
pub use layout::targets::{Selection, Targets};
pub use model::accounting;
pub use model::peft_module::PeftModule;
pub use model::training_hooks::TrainingHooks;
pub use nn::site::{AttentionSite, HiddenSite, KeyValueSite, PromptSite};
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
    pub use crate::model::quantized_module::QuantizedModule;
}

/// States and tensors of the adapters on a model.
pub mod state {
    pub use crate::model::adapter_state::AdapterState;
}

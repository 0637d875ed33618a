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
pub use attached::nested::Nested;
pub use error::{Error, Result};
pub use layout::key_mapping::{DecoderSettings, KeyMapping};
pub use layout::targets::{Selection, Targets};
pub use model::accounting;
pub use model::layer_groups::{LayerGroup, LayerGroups};
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
    pub use crate::model::calibration::{Calibrate, Calibrator};
    pub use crate::statistics::calibration::Calibration;
    pub use crate::statistics::gradients::GradientStatistics;
    pub use crate::statistics::inputs::InputStatistics;
    pub use crate::statistics::wanted::CalibrationConfig;
}

/// Effective weights that layers keep while nothing is trained, and how much memory they may take.
///
/// Where an adapter's activation side costs more than the effective weight does ([`WeightAdapter::keeps_weight`](
/// method::WeightAdapter::keeps_weight)), a layer of a model without autodiff composes it in its first forward pass, and
/// keeps it for the next ones. It is dropped by whatever changes the model: an adapter that is attached, loaded, activated
/// or edited, another composition, a mapper, a move to another device, training. Quantized layers keep none, nor do
/// batches whose rows have adapters of their own, nor heads that are a table.
///
/// The memory is that of a second copy of each such weight. It is counted over the whole process and has a limit, which
/// is 512 MiB if nothing else is set. Weights beyond it are composed in every forward pass. Outputs are the same to
/// rounding. [`PeftModule::merge_adapters`] computes all effective weights at once, whatever the limit.
///
/// ```
/// peft_core::kept_weights::set_limit(0); // Keep none.
/// assert_eq!(peft_core::kept_weights::bytes(), 0);
/// ```
pub mod kept_weights {
    pub use crate::attached::kept_weight::{bytes, limit, set_limit};
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

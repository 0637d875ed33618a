//! What can be done with adapters on a model.

pub mod accounting;
pub(crate) mod adapter_state;
pub(crate) mod attach;
pub(crate) mod average;
pub(crate) mod calibration;
pub(crate) mod compose;
pub(crate) mod layer_groups;
pub(crate) mod load;
pub(crate) mod merge;
pub(crate) mod peft_module;
pub(crate) mod quantize;
pub(crate) mod quantized_module;
pub(crate) mod save;
pub(crate) mod states;
pub(crate) mod switch;
pub(crate) mod training_hooks;

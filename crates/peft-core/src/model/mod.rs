//! What can be done with adapters on a model.

pub mod accounting;
pub(crate) mod attached;
pub(crate) mod compose;
pub(crate) mod peft_module;
pub(crate) mod training_hooks;

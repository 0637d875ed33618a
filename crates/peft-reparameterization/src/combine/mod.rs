//! LoRA adapters made of others, or of a fine-tuned model.

pub(crate) mod extract;
pub(crate) mod intruders;
pub(crate) mod merge_method;
pub(crate) mod weighted;

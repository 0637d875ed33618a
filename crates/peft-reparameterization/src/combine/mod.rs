//! LoRA adapters made of others, or of a fine-tuned model.

pub(crate) mod extract;
pub(crate) mod weighted;

//! AdaLoRA: LoRA whose ranks training decides.

pub(crate) mod config;
pub(crate) mod plan;
pub(crate) mod schedule;
pub(crate) mod state;

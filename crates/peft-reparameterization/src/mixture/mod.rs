//! Mixtures of low-rank changes, routed by token, by layer or by task.

pub(crate) mod arrow;
mod by_task;
pub(crate) mod classifier;
pub(crate) mod lily;
pub(crate) mod mtl_adapterhub;
pub(crate) mod mtl_layouts;
pub(crate) mod mtl_lora;
pub(crate) mod poly;
mod top_k;
pub(crate) mod xlora;
pub(crate) mod xlora_config;
mod xlora_files;

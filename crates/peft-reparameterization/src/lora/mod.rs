//! LoRA: its configuration, its states, and what goes with them.

pub(crate) mod adapterhub;
pub(crate) mod config;
pub(crate) mod conv;
pub(crate) mod dora;
pub(crate) mod eva;
pub(crate) mod fixed_factors;
pub(crate) mod gated;
pub(crate) mod init;
pub(crate) mod initial_factors;
pub(crate) mod layouts;
pub(crate) mod plan;
pub(crate) mod plus;
pub(crate) mod state;
pub(crate) mod tied;

//! LoRA: its configuration, its states, and what goes with them.

pub(crate) mod adapterhub;
pub(crate) mod alora;
pub(crate) mod block_diagonal;
pub(crate) mod config;
pub(crate) mod converted;
pub(crate) mod corda;
pub(crate) mod dora;
pub(crate) mod eva;
pub(crate) mod fixed_factors;
pub(crate) mod gated;
pub(crate) mod gradient_start;
pub(crate) mod init;
pub(crate) mod initial_factors;
pub(crate) mod kasa;
pub(crate) mod layouts;
pub(crate) mod loftq;
pub(crate) mod monteclora;
pub(crate) mod plan;
pub(crate) mod plan_linear;
pub(crate) mod plus;
pub(crate) mod riemannian;
pub(crate) mod state;
pub(crate) mod tied;
pub(crate) mod values;
pub(crate) mod variant;
pub(crate) mod velora;

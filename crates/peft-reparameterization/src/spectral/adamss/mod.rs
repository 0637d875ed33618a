//! AdaMSS: small factors for groups of outputs, in the subspace of a weight's largest singular values.

pub(crate) mod config;
mod schedule;
mod start;
pub(crate) mod state;

//! Methods that train parts of a weight's spectrum.

pub(crate) mod adamss;
pub(crate) mod frod;
mod joint_basis;
pub(crate) mod osf;

//! Methods that rotate or reflect a weight.

pub(crate) mod boft;
pub(crate) mod hra;
pub(crate) mod oft;
pub(crate) mod psoft;
pub(crate) mod rotation;

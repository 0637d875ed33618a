//! Methods whose layers share large frozen projections, or a bank of vectors.

pub(crate) mod projections;
pub(crate) mod randlora;
pub(crate) mod vblora;
pub(crate) mod vera;

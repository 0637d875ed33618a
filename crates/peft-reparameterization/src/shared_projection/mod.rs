//! Methods whose layers share large frozen projections, or a bank of vectors or numbers.

pub(crate) mod projections;
pub(crate) mod pvera;
pub(crate) mod randlora;
pub(crate) mod tinylora;
pub(crate) mod unilora;
pub(crate) mod vblora;
pub(crate) mod vera;
pub(crate) mod vera_adapterhub;
pub(crate) mod vera_layouts;

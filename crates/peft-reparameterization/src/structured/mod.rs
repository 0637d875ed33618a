//! Methods whose change has another structure than low rank: circulant, spectral, masked by the weight, shared rows.

pub(crate) mod c3a;
pub(crate) mod fourierft;
pub(crate) mod glora;
pub(crate) mod hira;
pub(crate) mod miss;
pub(crate) mod said;

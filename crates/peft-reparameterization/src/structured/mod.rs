//! Methods whose change has another structure than low rank: circulant, spectral, of wavelets, masked by the weight, shared rows,
//! blocks, normalised factors.

pub(crate) mod c3a;
pub(crate) mod delora;
pub(crate) mod fourierft;
pub(crate) mod glora;
pub(crate) mod gralora;
pub(crate) mod hira;
pub(crate) mod miss;
pub(crate) mod said;
pub(crate) mod waveft;

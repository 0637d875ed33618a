//! Linear algebra, filters of wavelets, and random numbers as torch and NumPy draw them.

pub(crate) mod linalg;
pub(crate) mod numpy_random;
pub(crate) mod of_weight;
pub(crate) mod qr;
pub(crate) mod signs;
pub(crate) mod torch_random;
pub(crate) mod wavelets;

//! Linear algebra, the gamma function, filters of wavelets, random numbers as torch and NumPy draw them, groups of rows,
//! importances of parameters, and four-bit numbers.

pub(crate) mod gamma;
pub(crate) mod importance;
pub(crate) mod kmeans;
pub(crate) mod linalg;
pub(crate) mod nf4;
pub(crate) mod numpy_random;
pub(crate) mod of_weight;
pub(crate) mod orthogonality;
pub(crate) mod qr;
pub(crate) mod signs;
pub(crate) mod torch_random;
pub(crate) mod wavelets;

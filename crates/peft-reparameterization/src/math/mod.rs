//! Linear algebra, the gamma function, random numbers as torch draws them, and four-bit numbers.

pub(crate) mod gamma;
pub(crate) mod linalg;
pub(crate) mod nf4;
pub(crate) mod orthogonality;
pub(crate) mod torch_random;

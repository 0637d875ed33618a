//! Linear algebra, and random numbers as torch draws them.

pub(crate) mod linalg;
pub(crate) mod qr;
pub(crate) mod torch_random;

//! Linear algebra, and random numbers as torch draws them.

pub(crate) mod linalg;
pub(crate) mod of_weight;
pub(crate) mod signs;
pub(crate) mod torch_random;

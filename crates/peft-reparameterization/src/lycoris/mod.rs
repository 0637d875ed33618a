//! LoHa and LoKr: a Hadamard and a Kronecker product of small matrices.

pub(crate) mod fields;
pub(crate) mod loha;
pub(crate) mod lokr;

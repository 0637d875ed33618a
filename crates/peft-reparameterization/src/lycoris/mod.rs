//! LoHa and LoKr: a Hadamard and a Kronecker product of small matrices.

pub(crate) mod change_dropout;
pub(crate) mod loha;
pub(crate) mod lokr;

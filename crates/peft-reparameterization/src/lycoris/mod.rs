//! LoHa and LoKr: a Hadamard and a Kronecker product of small matrices.

pub(crate) mod change_dropout;
pub(crate) mod krona_block;
pub(crate) mod loha;
pub(crate) mod loha_conv;
pub(crate) mod lokr;
pub(crate) mod tucker;

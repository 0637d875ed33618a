#![doc = include_str!("../README.md")]

mod adamw;
mod angles;
mod attention;
mod composing;
mod cross_entropy;
mod elementwise;
mod format;
mod fused;
mod gelu;
#[cfg(feature = "cube")]
mod gpu;
mod linear;
mod low_rank;
mod memory;
mod norm;
mod options;
mod precision;
pub mod quantized;
pub mod reference;
mod rotary;
mod segments;
mod sparse;
mod sparse_matrix;
mod waves;

#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "flex")]
mod extension;
#[cfg(all(test, feature = "flex"))]
mod tests;

pub use adamw::adamw;
pub use angles::Rotary;
pub use attention::{AttentionInputs, attention, linear_of_attention};
pub use composing::{
    add_hadamard, add_product, add_waves, block_diagonal, scale_by_product, scale_columns,
};
pub use cross_entropy::{linear_cross_entropy, linear_cross_entropy_with};
pub use elementwise::{dropout, gelu, swiglu};
pub use fused::set_fused;
pub use linear::{
    Weight, add_low_rank, linear, linear_of_gelu, linear_of_rms_norm, linear_of_swiglu,
};
pub use low_rank::LowRank;
pub use memory::{give_back_freed_memory, keep_freed_memory};
pub use norm::{column_norms, layer_norm, rms_norm};
pub use options::{AdamWOptions, AttentionOptions, MixedPrecision};
pub use precision::{bf16_unit, mixed_precision, set_bf16_unit, set_mixed_precision};
pub use rotary::rotary;
pub use segments::Segments;
pub use sparse::{add_sparse, add_sparse_rows, multiplies_sparse};
pub use sparse_matrix::Sparse;
pub use waves::Waves;

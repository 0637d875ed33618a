//! Fused operations with handwritten backward passes, for adapters and the models under them.
//!
//! Every function here computes what its namesake in [`mod@reference`] computes. On Burn's CPU
//! backend (`flex`), for `f32`, it does so in few passes over memory, on all cores, and keeps for the
//! backward pass only what some input that is being trained needs: a frozen weight costs no saved
//! input. Elsewhere the reference runs. Property tests hold both to each other, outputs and all
//! gradients.
//!
//! Deviations are those of rounding (1e-6 of the largest value); dropout draws other coins than
//! Burn's module, from Burn's seed (`Device::seed`).

mod adamw;
mod angles;
mod attention;
mod cross_entropy;
mod elementwise;
mod fused;
mod gelu;
mod linear;
mod low_rank;
mod memory;
mod norm;
mod options;
pub mod quantized;
pub mod reference;
mod rotary;
mod segments;

#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "flex")]
mod extension;
#[cfg(all(test, feature = "flex"))]
mod tests;

pub use adamw::adamw;
pub use angles::Rotary;
pub use attention::{AttentionInputs, attention, linear_of_attention};
pub use cross_entropy::{linear_cross_entropy, linear_cross_entropy_with};
pub use elementwise::{dropout, gelu, swiglu};
pub use fused::set_fused;
pub use linear::{
    Weight, add_low_rank, linear, linear_of_gelu, linear_of_rms_norm, linear_of_swiglu,
};
pub use low_rank::LowRank;
pub use memory::{give_back_freed_memory, keep_freed_memory};
pub use norm::{column_norms, layer_norm, rms_norm};
pub use options::{AdamWOptions, AttentionOptions};
pub use rotary::rotary;
pub use segments::Segments;

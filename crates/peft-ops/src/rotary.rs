//! Rotary position embedding.

use burn::tensor::Tensor;
#[cfg(feature = "flex")]
use burn::{backend::Dispatch, tensor::DType};

use crate::angles::Rotary;
#[cfg(feature = "flex")]
use crate::extension::Fused;
#[cfg(feature = "flex")]
use crate::fused::fuses;
use crate::reference;

/// Turns the pairs of every head of `input` `[batch, seq, heads · 2 · pairs]`. The first half of a head's
/// features are the pairs' first members, as in Hugging Face's models (`rotate_half`).
///
/// The backward pass keeps the angles only.
///
/// # Panics
///
/// If shapes do not fit.
pub fn rotary(input: Tensor<3>, rotary: &Rotary, heads: usize) -> Tensor<3> {
    let [batch, seq, width] = input.dims();
    let [items, length, pairs] = rotary.cos.dims();
    assert!(
        rotary.sin.dims() == [items, length, pairs]
            && (items == 1 || items == batch)
            && length == seq
            && heads * 2 * pairs == width,
        "angles of [{items}, {length}, {pairs}] for {heads} heads of [{batch}, {seq}, {width}]"
    );
    #[cfg(feature = "flex")]
    if fuses(&input) && rotary.cos.dtype() == DType::F32 {
        return Tensor::from_dispatch(<Dispatch as Fused>::rotary(
            input.into_dispatch(),
            rotary.cos.clone().into_dispatch(),
            rotary.sin.clone().into_dispatch(),
            heads,
        ));
    }
    reference::rotary(input, rotary, heads)
}

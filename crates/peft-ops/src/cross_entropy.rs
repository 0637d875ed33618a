//! Cross entropy of a language model's head.

use burn::tensor::Tensor;
#[cfg(feature = "flex")]
use burn::{backend::Dispatch, tensor::DType};
#[cfg(feature = "flex")]
use std::sync::Arc;

#[cfg(feature = "flex")]
use crate::extension::{Fused, Maybe};
#[cfg(feature = "flex")]
use crate::fuses;
use crate::linear::Weight;
use crate::reference;

/// The sum of the negative log likelihoods, in nats, of `targets` under `softmax(hidden · headᵀ)`: `[1]`.
///
/// `hidden` is `[rows, d]`. `head` has one row for each class, `[classes, d]`, as tied embeddings have;
/// a packed one as well. `targets` has one class for each row; where it is negative, the row is left out.
///
/// The logits of all rows are never there at once, nor kept: gradients are computed with the loss, some rows
/// at a time. On other devices than Burn's CPU backend the reference forms them.
///
/// # Panics
///
/// If shapes do not fit, or a target is no class.
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    head: impl Into<Weight>,
    targets: &[i64],
) -> Tensor<1> {
    let head = head.into();
    let [rows, width] = hidden.dims();
    let [classes, d] = match &head {
        Weight::Dense(tensor) => tensor.dims(),
        Weight::Packed(packed) => packed.shape(),
    };
    assert_eq!(width, d, "the width of the hidden states is not the head's");
    assert_eq!(targets.len(), rows, "one target for each row");
    if let Some(target) = targets.iter().find(|target| **target >= classes as i64) {
        panic!("target {target} of {classes} classes");
    }
    #[cfg(feature = "flex")]
    if fuses(&hidden) {
        let (dense, packed) = match &head {
            Weight::Dense(tensor) => (Some(tensor.clone()), None),
            Weight::Packed(packed) => (None, Some(packed.clone())),
        };
        if dense.as_ref().is_none_or(|head| head.dtype() == DType::F32) {
            return Tensor::from_dispatch(<Dispatch as Fused>::linear_cross_entropy(
                hidden.into_dispatch(),
                Maybe::from(dense.map(Tensor::into_dispatch)),
                packed,
                Arc::new(targets.to_vec()),
            ));
        }
    }
    let head = match head {
        Weight::Dense(tensor) => tensor,
        Weight::Packed(packed) => packed.to_tensor(&hidden.device()).cast(hidden.dtype()),
    };
    reference::linear_cross_entropy(hidden, head, targets)
}

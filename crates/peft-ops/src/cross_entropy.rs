//! Cross entropy of a language model's head.

use burn::tensor::Tensor;
#[cfg(feature = "flex")]
use burn::{backend::Dispatch, tensor::DType};
#[cfg(feature = "flex")]
use std::sync::Arc;

#[cfg(feature = "flex")]
use crate::extension::{Fused, Maybe};
#[cfg(feature = "flex")]
use crate::fused::fuses;
use crate::linear::Weight;
use crate::low_rank::LowRank;
use crate::reference;

/// The sum of the negative log likelihoods, in nats, of `targets` under `softmax(hidden · headᵀ)`: `[1]`.
///
/// `hidden` is `[rows, d]`. `head` has one row for each class, `[classes, d]`, as tied embeddings have;
/// a quantized one as well. `targets` has one class for each row; where it is negative, the row is left out.
///
/// The logits of all rows are never there at once, nor kept: gradients are computed with the loss, some rows
/// at a time. On other devices than Burn's CPU backend and GPUs the reference forms them.
///
/// # Panics
///
/// If shapes do not fit, or a target is no class.
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    head: impl Into<Weight>,
    targets: &[i64],
) -> Tensor<1> {
    linear_cross_entropy_with(hidden, head, None, targets)
}

/// As [`linear_cross_entropy`], with a low-rank addition to the head where there is one: the logits are
/// `hidden · headᵀ + s·(drop(hidden) A) B`. The factors are a linear layer's, A `[d, r]` and B `[r, classes]`, and no
/// matrix of the head's size is made of them.
///
/// # Panics
///
/// If shapes do not fit, or a target is no class.
pub fn linear_cross_entropy_with(
    hidden: Tensor<2>,
    head: impl Into<Weight>,
    low_rank: Option<LowRank>,
    targets: &[i64],
) -> Tensor<1> {
    let head = head.into();
    let [rows, width] = hidden.dims();
    let [classes, d] = match &head {
        Weight::Dense(tensor) => tensor.dims(),
        Weight::Quantized(quantized) => quantized.shape(),
    };
    assert_eq!(width, d, "the width of the hidden states is not the head's");
    assert_eq!(targets.len(), rows, "one target for each row");
    if let Some(target) = targets.iter().find(|target| **target >= classes as i64) {
        panic!("target {target} of {classes} classes");
    }
    if let Some(LowRank { down, up, .. }) = &low_rank {
        let ([d_in, rank], [r, d_out]) = (down.dims(), up.dims());
        assert_eq!((d_in, r, d_out), (d, rank, classes), "shapes of factors");
    }
    let added = low_rank.map(|factors| {
        let LowRank {
            down,
            up,
            scale,
            dropout,
        } = factors.cast(hidden.dtype());
        let seen = crate::dropout(hidden.clone(), dropout);
        (seen.matmul(down) * scale, up)
    });
    #[cfg(feature = "flex")]
    if fuses(&hidden) {
        let (dense, quantized) = match &head {
            Weight::Dense(tensor) => (Some(tensor.clone()), None),
            Weight::Quantized(quantized) => (None, Some(quantized.clone())),
        };
        if dense.as_ref().is_none_or(|head| head.dtype() == DType::F32) {
            let (through, up) = added.unzip();
            return Tensor::from_dispatch(<Dispatch as Fused>::linear_cross_entropy(
                hidden.into_dispatch(),
                Maybe::from(dense.map(Tensor::into_dispatch)),
                quantized,
                Maybe::from(through.map(Tensor::into_dispatch)),
                Maybe::from(up.map(Tensor::into_dispatch)),
                Arc::new(targets.to_vec()),
                crate::mixed_precision(),
            ));
        }
    }
    #[cfg(feature = "cube")]
    if crate::gpu::is_cube(&hidden.device()) {
        let added = added.map(|(through, up)| [through, up]);
        let head = match (head.placed(&hidden.device()), head) {
            (Some(placed), _) => crate::gpu::decoded(&placed, &hidden),
            // Its rows are the classes.
            (None, Weight::Dense(head)) => head,
            (None, Weight::Quantized(rows)) => {
                rows.to_tensor(&hidden.device()).cast(hidden.dtype())
            }
        };
        return crate::gpu::cross_entropy(hidden, head, added, targets);
    }
    let head = match head {
        Weight::Dense(tensor) => tensor,
        Weight::Quantized(quantized) => quantized.to_tensor(&hidden.device()).cast(hidden.dtype()),
    };
    match added {
        Some((through, up)) => {
            let logits = hidden.matmul(head.transpose()) + through.matmul(up);
            reference::cross_entropy(logits, targets)
        }
        None => reference::linear_cross_entropy(hidden, head, targets),
    }
}

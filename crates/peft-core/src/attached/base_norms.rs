//! Norms of a base's columns, kept between forward passes.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;

/// Norms of a base's columns, computed when they are first asked for. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct BaseNorms(Arc<OnceLock<Tensor<1>>>);

impl BaseNorms {
    /// The norms `[out]` of `base` `[in, out]`, in the number format of `like` and on its side of autodiff.
    pub(crate) fn get(&self, base: impl FnOnce() -> Tensor<2>, like: &Tensor<2>) -> Tensor<1> {
        let norms = self
            .0
            .get_or_init(|| peft_ops::column_norms(base()).without_autodiff())
            .clone()
            .cast(like.dtype());
        if like.is_autodiff() {
            Tensor::from_inner(norms)
        } else {
            norms
        }
    }
}

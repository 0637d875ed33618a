//! Factors of a low-rank change.

use burn::tensor::{DType, Tensor};

/// Factors of a low-rank change of a weight, `s·A B`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// A, `[in, r]`.
    pub down: Tensor<2>,
    /// B, `[r, out]`. Both may be of another number format than the input: they are cast.
    pub up: Tensor<2>,
    /// s.
    pub scale: f64,
    /// Probability with which an element of what A sees is dropped, in [0, 1), as [`dropout`](crate::dropout)
    /// does it: on autodiff devices only. The layer's own weight sees all.
    pub dropout: f64,
}

impl LowRank {
    /// The factors as tensors of `dtype`: where they are kept in fewer bits than is computed in.
    #[must_use]
    pub fn cast(self, dtype: DType) -> Self {
        if self.down.dtype() == dtype && self.up.dtype() == dtype {
            return self;
        }
        Self {
            down: self.down.cast(dtype),
            up: self.up.cast(dtype),
            ..self
        }
    }

    /// `s·A B` for A `[in, r]` and B `[r, out]`, without dropout.
    pub fn new(down: Tensor<2>, up: Tensor<2>, scale: f64) -> Self {
        Self {
            down,
            up,
            scale,
            dropout: 0.0,
        }
    }

    /// s·A B, `[in, out]`.
    pub fn product(&self) -> Tensor<2> {
        (self.down.clone() * self.scale).matmul(self.up.clone())
    }
}

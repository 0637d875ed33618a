//! Weights as products take them.

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;

use super::rounded;
use super::tensors::{matrix, weight};
use crate::cpu::bf16::Packed;
use crate::cpu::cross_entropy::Head;
use crate::cpu::matrix::Matrix;
use crate::cpu::right::{FEW_ROWS, Right};
use crate::options::MixedPrecision;
use crate::quantized::{QuantizedMatrix, QuantizedWeight};

/// A weight: Burn's `[in, out]`, or rows `[out, in]` in a quantized form, which may be rounded for products.
#[derive(Clone, Debug)]
pub(super) enum Weight {
    Dense(Dense),
    Quantized(QuantizedWeight, bool),
}

impl Weight {
    /// The one that is there, for products of this precision; `trained` if it changes after this pass.
    pub(super) fn new(
        dense: Option<FlexTensor>,
        quantized: Option<QuantizedWeight>,
        precision: MixedPrecision,
        trained: bool,
    ) -> Self {
        let rounds = precision == MixedPrecision::Bf16;
        match (dense, quantized) {
            (_, Some(quantized)) => Self::Quantized(quantized, rounds),
            (Some(tensor), None) => Self::Dense(Dense::new(tensor, rounds, trained)),
            (None, None) => unreachable!("a layer has a weight"),
        }
    }

    /// Widths of what goes in and what comes out.
    pub(super) fn widths(&self) -> (usize, usize) {
        match self {
            Self::Dense(dense) => (dense.tensor.shape()[0], dense.tensor.shape()[1]),
            Self::Quantized(quantized, _) => (quantized.shape()[1], quantized.shape()[0]),
        }
    }

    /// For products with so many rows, `[in, out]`, or the quantized matrix and whether it is rounded.
    pub(super) fn side(&self, rows: usize) -> Side<'_> {
        match self {
            Self::Dense(dense) => Side::Dense(dense.right()),
            Self::Quantized(quantized, rounded) => {
                let halves = quantized
                    .bfloat16()
                    .filter(|_| *rounded && rows >= FEW_ROWS);
                let [d_out, d_in] = quantized.shape();
                match halves {
                    Some(halves) => {
                        Side::Dense(Right::Halves(Matrix::new(halves, d_out, d_in).t()))
                    }
                    None => Side::Quantized(&**quantized, *rounded),
                }
            }
        }
    }

    /// As the head of a loss of so many rows.
    pub(super) fn head(&self, rows: usize) -> Head<'_> {
        match (self, self.side(rows)) {
            // Its rows are the classes.
            (Self::Dense(_), Side::Dense(right)) => Head::Dense(right),
            (Self::Quantized(..), Side::Dense(right)) => Head::Dense(right.t()),
            (_, Side::Quantized(matrix, rounded)) => Head::Quantized(matrix, rounded),
        }
    }
}

/// A weight as the right side of products.
pub(super) enum Side<'a> {
    Dense(Right<'a>),
    Quantized(&'a dyn QuantizedMatrix, bool),
}

/// A weight in `f32`.
#[derive(Clone, Debug)]
pub(super) struct Dense {
    tensor: FlexTensor,
    rounds: bool,
    packed: Option<Arc<Packed>>,
}

impl Dense {
    fn new(tensor: FlexTensor, rounds: bool, trained: bool) -> Self {
        let tensor = weight(tensor);
        let frozen = rounds && !trained;
        let packed = frozen.then(|| rounded::packed(&tensor)).flatten();
        Self {
            tensor,
            rounds,
            packed,
        }
    }

    /// As the right side of products.
    fn right(&self) -> Right<'_> {
        match &self.packed {
            Some(packed) => Right::Packed(packed),
            None => Right::new(matrix(&self.tensor), self.rounds),
        }
    }
}

//! The right side of a product: as it is, or rounded to bfloat16.

#![allow(unsafe_code)]

use super::bf16::{self, Packed, Start};
use super::buffers::Fresh;
use super::math::add_row;
use super::matrix::{Matrix, MatrixMut};
use super::product::{Mode, multiply};

/// Products of fewer rows than this are not rounded with a matrix that is not in order yet: that would cost more
/// than they do.
const FEW_ROWS: usize = 16;

/// A matrix that others are multiplied by. With a rounded one, the left side is rounded, too.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// In `f32`.
    Whole(Matrix<'a>),
    /// Rounded for each product of many rows.
    Rounded(Matrix<'a>),
    /// Rounded once.
    Packed(&'a Packed),
    /// The transposed of what was rounded once.
    Transposed(&'a Packed),
}

impl<'a> Right<'a> {
    /// The matrix, which is `rounded` for each product or not.
    pub(crate) fn new(matrix: Matrix<'a>, rounded: bool) -> Self {
        if rounded {
            Self::Rounded(matrix)
        } else {
            Self::Whole(matrix)
        }
    }

    /// The transposed matrix.
    pub(crate) fn t(self) -> Self {
        match self {
            Self::Whole(matrix) => Self::Whole(matrix.t()),
            Self::Rounded(matrix) => Self::Rounded(matrix.t()),
            Self::Packed(packed) => Self::Transposed(packed),
            Self::Transposed(packed) => Self::Packed(packed),
        }
    }

    /// Rows and columns.
    pub(crate) fn size(self) -> [usize; 2] {
        match self {
            Self::Whole(matrix) | Self::Rounded(matrix) => matrix.size(),
            Self::Packed(packed) => packed.size(),
            Self::Transposed(packed) => {
                let [columns, rows] = packed.size();
                [rows, columns]
            }
        }
    }

    /// Whether products round their sides.
    pub(crate) fn rounds(self) -> bool {
        !matches!(self, Self::Whole(_))
    }

    /// The matrix in the order that products want, if it is not and is not `f32`: for many products with it.
    pub(crate) fn packed(self) -> Option<Packed> {
        match self {
            Self::Whole(_) | Self::Packed(_) => None,
            Self::Rounded(matrix) => Some(Packed::new(matrix)),
            Self::Transposed(packed) => Some(packed.transposed()),
        }
    }

    /// `dst = alpha·lhs·self`, or adds that to it; on all threads if it is large and `parallel`.
    pub(crate) fn multiply(
        self,
        dst: &mut MatrixMut<'_>,
        mode: Mode,
        lhs: Matrix<'_>,
        alpha: f32,
        parallel: bool,
    ) {
        if let Some(matrix) = self.whole(lhs) {
            return multiply(dst, mode, lhs, matrix, alpha, parallel);
        }
        self.multiply_rounded(dst, mode.into(), lhs, alpha, parallel);
    }

    /// The matrix, if a product with this left side rounds neither.
    fn whole(self, lhs: Matrix<'_>) -> Option<Matrix<'a>> {
        match self {
            Self::Whole(matrix) => Some(matrix),
            Self::Rounded(matrix) => Some(matrix).filter(|_| lhs.size()[0] < FEW_ROWS),
            Self::Packed(_) | Self::Transposed(_) => None,
        }
    }

    fn multiply_rounded(
        self,
        dst: &mut MatrixMut<'_>,
        start: Start<'_>,
        lhs: Matrix<'_>,
        alpha: f32,
        parallel: bool,
    ) {
        match self {
            Self::Whole(matrix) | Self::Rounded(matrix) => {
                bf16::multiply_by(dst, start, lhs, matrix, alpha, parallel);
            }
            Self::Packed(packed) => {
                bf16::multiply(dst, start, lhs, packed.panels(), alpha, parallel);
            }
            Self::Transposed(packed) => {
                let panels = packed.panels();
                bf16::multiply_by_transposed(dst, start, lhs, panels, alpha, parallel);
            }
        }
    }

    /// `lhs·self`, dense and row-major, with a bias added to each row if there is one.
    pub(crate) fn product<'b>(
        self,
        to: Fresh<'b>,
        lhs: Matrix<'_>,
        bias: Option<&[f32]>,
        parallel: bool,
    ) -> &'b mut [f32] {
        if let Some(matrix) = self.whole(lhs) {
            let output = to.product(lhs, matrix, 1.0, parallel);
            if let Some(bias) = bias {
                add_row(output, bias);
            }
            return output;
        }
        let start = bias.map_or(Start::Nothing, Start::Row);
        let size = [lhs.size()[0], self.size()[1]];
        // SAFETY: a product that starts with nothing that is there writes every element and reads none.
        unsafe {
            to.written(size, |dst| {
                self.multiply_rounded(dst, start, lhs, 1.0, parallel);
            })
        }
    }
}

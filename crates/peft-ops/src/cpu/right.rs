//! The right side of a product: as it is, or rounded to bfloat16.

#![allow(unsafe_code)]

use super::bf16::{self, Factors, Packed, Start};
use super::buffers::Fresh;
use super::math::add_row;
use super::matrix::{Matrix, MatrixMut};
use super::product::{Mode, multiply};

/// Products of fewer rows than this are not rounded with a matrix that is not in order yet: that would cost more
/// than they do.
pub(crate) const FEW_ROWS: usize = 16;

/// A matrix that others are multiplied by. With a rounded one, the left side is rounded, too.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// In `f32`.
    Whole(Matrix<'a>),
    /// Rounded for each product of many rows.
    Rounded(Matrix<'a>),
    /// The bits of numbers in bfloat16.
    Halves(Matrix<'a, u16>),
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
            Self::Halves(halves) => Self::Halves(halves.t()),
            Self::Packed(packed) => Self::Transposed(packed),
            Self::Transposed(packed) => Self::Packed(packed),
        }
    }

    /// Rows and columns.
    pub(crate) fn size(self) -> [usize; 2] {
        match self {
            Self::Whole(matrix) | Self::Rounded(matrix) => matrix.size(),
            Self::Halves(halves) => halves.size(),
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
            Self::Halves(halves) => Some(Packed::new(halves)),
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

    /// Whether a product with so many rows rounds its sides.
    pub(crate) fn rounds_with(self, rows: usize) -> bool {
        match self {
            Self::Whole(_) => false,
            Self::Rounded(_) => rows >= FEW_ROWS,
            Self::Halves(_) | Self::Packed(_) | Self::Transposed(_) => true,
        }
    }

    /// The matrix, if a product with this left side rounds neither.
    fn whole(self, lhs: Matrix<'_>) -> Option<Matrix<'a>> {
        match self {
            Self::Whole(matrix) => Some(matrix),
            Self::Rounded(matrix) => Some(matrix).filter(|_| !self.rounds_with(lhs.size()[0])),
            Self::Halves(_) | Self::Packed(_) | Self::Transposed(_) => None,
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
                bf16::multiply_by(dst, start, lhs, matrix, alpha, None, parallel);
            }
            Self::Halves(halves) => {
                bf16::multiply_by(dst, start, lhs, halves, alpha, None, parallel);
            }
            Self::Packed(packed) => {
                bf16::multiply(dst, start, lhs, packed.panels(), alpha, parallel);
            }
            Self::Transposed(packed) => {
                let panels = packed.panels();
                bf16::multiply_by_transposed(dst, start, lhs, panels, alpha, None, parallel);
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
    /// `lhs·self + (lhs·A)·B`, dense and row-major, with a bias added to each row if there is one; `lhs·A` goes to
    /// `through`. The product is one that [rounds](Self::rounds_with).
    pub(crate) fn product_with<'b>(
        self,
        to: Fresh<'b>,
        lhs: Matrix<'_>,
        bias: Option<&[f32]>,
        factors: &Factors,
        through: &mut [f32],
        parallel: bool,
    ) -> &'b mut [f32] {
        let start = bias.map_or(Start::Nothing, Start::Row);
        let size = [lhs.size()[0], self.size()[1]];
        let write = |dst: &mut MatrixMut<'_>| match self {
            Self::Packed(packed) => {
                let panels = packed.panels();
                bf16::multiply_with(dst, start, lhs, panels, factors, through, parallel);
            }
            Self::Whole(matrix) | Self::Rounded(matrix) => {
                factors.through(lhs, through, parallel);
                let added = Some(factors.added(through));
                bf16::multiply_by(dst, start, lhs, matrix, 1.0, added, parallel);
            }
            Self::Halves(halves) => {
                factors.through(lhs, through, parallel);
                let added = Some(factors.added(through));
                bf16::multiply_by(dst, start, lhs, halves, 1.0, added, parallel);
            }
            Self::Transposed(packed) => {
                factors.through(lhs, through, parallel);
                let added = Some(factors.added(through));
                let panels = packed.panels();
                bf16::multiply_by_transposed(dst, start, lhs, panels, 1.0, added, parallel);
            }
        };
        // SAFETY: a product that starts with nothing that is there writes every element and reads none.
        unsafe { to.written(size, write) }
    }
}

//! What a low rank adds to a product: `(x A) B`, while the product's sums are in registers.
//!
//! A and B keep more than bfloat16 has: A is two numbers, the rounded one and what rounding left, and B stays `f32`.

use super::Packed;
use super::portable::{round, widen};
use crate::cpu::matrix::Matrix;

/// The factors of a low-rank addition, in the order that products want.
pub(crate) struct Factors {
    /// `[inner, 2r]`: A, and what rounding leaves of it.
    down: Packed,
    /// What `x A` is multiplied by.
    scale: f32,
    /// B, `[r, columns]`.
    up: Vec<f32>,
    rank: usize,
}

impl Factors {
    /// A `[inner, r]` and B `[r, columns]`, each times a number.
    pub(crate) fn new(down: Matrix<'_>, up: Matrix<'_>, scales: [f32; 2]) -> Self {
        let ([inner, rank], [_, columns]) = (down.size(), up.size());
        assert_eq!(rank, up.size()[0], "the rank of both factors");
        let mut halves = vec![0.0; inner * 2 * rank];
        copy(down, &mut halves, 2 * rank, 1.0);
        for row in halves.chunks_exact_mut((2 * rank).max(1)) {
            let (whole, rest) = row.split_at_mut(rank);
            for (value, rest) in whole.iter().zip(rest) {
                let high = widen(round(*value));
                *rest = if high.is_finite() { value - high } else { 0.0 };
            }
        }
        let mut dense = vec![0.0; rank * columns];
        copy(up, &mut dense, columns, scales[1]);
        Self {
            down: Packed::new(Matrix::new(&halves, inner, 2 * rank)),
            scale: scales[0],
            up: dense,
            rank,
        }
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    /// The right side that gives `x A` twice, once for each number of A, and its factor.
    pub(super) fn down(&self) -> (&Packed, f32) {
        (&self.down, self.scale)
    }

    /// What `x` gives with both numbers of A, added up.
    pub(super) fn fold(&self, halves: &[f32], to: &mut [f32]) {
        let rank = self.rank.max(1);
        for (to, halves) in to.chunks_exact_mut(rank).zip(halves.chunks_exact(2 * rank)) {
            let (high, low) = halves.split_at(rank);
            for ((to, high), low) in to.iter_mut().zip(high).zip(low) {
                *to = high + low;
            }
        }
    }

    /// What is added to a product of rows that gave `through`, in the columns from `first` on.
    pub(crate) fn added<'a>(&'a self, through: &'a [f32]) -> Added<'a> {
        Added {
            through,
            rank: self.rank,
            up: &self.up,
            stride: self.up.len() / self.rank.max(1),
        }
    }
}

/// Copies a matrix to rows of `width` numbers, times `scale`.
fn copy(from: Matrix<'_>, to: &mut [f32], width: usize, scale: f32) {
    let [_, columns] = from.size();
    let (data, [row_stride, column_stride]) = from.parts();
    for (row, to) in to.chunks_exact_mut(width.max(1)).enumerate() {
        for (column, to) in to.iter_mut().enumerate().take(columns) {
            *to = scale * data[row * row_stride + column * column_stride];
        }
    }
}

/// `through · up`, which is added to a product.
#[derive(Clone, Copy)]
pub(crate) struct Added<'a> {
    /// `[rows, r]`.
    pub(super) through: &'a [f32],
    pub(super) rank: usize,
    /// `[r, columns]`, whose rows are `stride` numbers apart.
    pub(super) up: &'a [f32],
    pub(super) stride: usize,
}

impl Added<'_> {
    /// What is added to the columns from `first` on.
    pub(super) fn columns(self, first: usize) -> Self {
        Self {
            up: &self.up[first.min(self.up.len())..],
            ..self
        }
    }

    /// What is added to the rows from `first` on.
    pub(super) fn rows(self, first: usize) -> Self {
        Self {
            through: &self.through[first * self.rank..],
            ..self
        }
    }

    /// Whether there is enough for `[rows, columns]`.
    pub(super) fn covers(&self, [rows, columns]: [usize; 2]) -> bool {
        let rank = self.rank;
        rank == 0
            || self.through.len() >= rows * rank
                && self.stride >= columns
                && self.up.len() >= (rank - 1) * self.stride + columns
    }

    /// As matrices, for a product of `[rows, columns]`.
    pub(super) fn sides(&self, [rows, columns]: [usize; 2]) -> [Matrix<'_>; 2] {
        [
            Matrix::new(self.through, rows, self.rank),
            Matrix::strided(self.up, self.rank, columns, self.stride),
        ]
    }
}

/// What a block of a product is computed with, besides its sides.
pub(super) enum Beside<'a> {
    Nothing,
    /// What is added to it.
    Added(Added<'a>),
    /// Factors, and where `x A` goes: that is computed with the block.
    Factors(&'a Factors, &'a mut [f32]),
}

impl<'a> Beside<'a> {
    /// Room for what `x` gives with both numbers of A.
    pub(super) fn halves(&self, rows: usize) -> Vec<f32> {
        match self {
            Self::Factors(factors, _) => vec![0.0; rows * 2 * factors.rank],
            _ => Vec::new(),
        }
    }

    /// The right side that gives them, and its factor.
    pub(super) fn down(&self) -> Option<(&'a Packed, f32)> {
        match self {
            Self::Factors(factors, _) => Some(factors.down()),
            _ => None,
        }
    }

    /// What is added, once the halves are complete.
    pub(super) fn complete(&mut self, halves: &[f32]) -> Option<Added<'_>> {
        match self {
            Self::Nothing => None,
            Self::Added(added) => Some(*added),
            Self::Factors(factors, through) => {
                factors.fold(halves, through);
                Some(factors.added(through))
            }
        }
    }
}

//! What a low rank adds to a product: `(x A) B`, while the product's sums are in registers.
//!
//! A, B and `x A` keep more than bfloat16 has: each is two numbers, the rounded one and what rounding left.

use super::portable::{round, widen};
use super::{Packed, Panels};
use crate::cpu::matrix::Matrix;

/// The factors of a low-rank addition, in the order that products want.
pub(crate) struct Factors {
    /// `[inner, 2r]`: A, and what rounding leaves of it.
    down: Packed,
    /// `[4r, columns]`: B twice, and what rounding leaves of it twice.
    up: Packed,
    rank: usize,
}

/// A number as the sum of its rounded one and what rounding leaves, which are both in bfloat16 then.
fn split(value: f32) -> [f32; 2] {
    let high = widen(round(value));
    [high, if high.is_finite() { value - high } else { 0.0 }]
}

impl Factors {
    /// A `[inner, r]` and B `[r, columns]`, each times a number.
    pub(crate) fn new(down: Matrix<'_>, up: Matrix<'_>, scales: [f32; 2]) -> Self {
        let ([inner, rank], [_, columns]) = (down.size(), up.size());
        assert_eq!(rank, up.size()[0], "the rank of both factors");
        let mut halves = vec![0.0; inner * 2 * rank];
        let (data, [row_stride, column_stride]) = down.parts();
        for (row, halves) in halves.chunks_exact_mut((2 * rank).max(1)).enumerate() {
            for column in 0..rank {
                let value = scales[0] * data[row * row_stride + column * column_stride];
                [halves[column], halves[rank + column]] = split(value);
            }
        }
        let mut quarters = vec![0.0; 4 * rank * columns];
        let (data, [row_stride, column_stride]) = up.parts();
        for row in 0..rank {
            for column in 0..columns {
                let value = scales[1] * data[row * row_stride + column * column_stride];
                let [high, low] = split(value);
                for (part, value) in [high, high, low, low].into_iter().enumerate() {
                    quarters[(part * rank + row) * columns + column] = value;
                }
            }
        }
        Self {
            down: Packed::new(Matrix::new(&halves, inner, 2 * rank)),
            up: Packed::new(Matrix::new(&quarters, 4 * rank, columns)),
            rank,
        }
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    /// The right side that gives `x A` twice, once for each number of A.
    pub(super) fn down(&self) -> &Packed {
        &self.down
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

    /// What is added to a product of rows that gave `through`.
    pub(crate) fn added<'a>(&'a self, through: &'a [f32]) -> Added<'a> {
        Added {
            through,
            rank: self.rank,
            up: self.up.panels(),
        }
    }
}

/// `through · B`, which is added to a product.
#[derive(Clone, Copy)]
pub(crate) struct Added<'a> {
    /// `[rows, r]`.
    through: &'a [f32],
    rank: usize,
    /// The right side, `[4r, columns]`.
    pub(super) up: Panels<'a>,
}

impl Added<'_> {
    /// What is added to `count` columns from `first` on, which begins a panel.
    pub(super) fn columns(self, first: usize, count: usize) -> Self {
        Self {
            up: self.up.columns(first, count),
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

    /// The left side, `[rows, 4r]`: what came through, as two numbers each, twice.
    pub(super) fn left(&self, rows: usize) -> Vec<f32> {
        let mut left = Vec::with_capacity(rows * 4 * self.rank);
        for row in self.through.chunks_exact(self.rank.max(1)).take(rows) {
            for part in [0, 1, 0, 1] {
                left.extend(row.iter().map(|value| split(*value)[part]));
            }
        }
        left
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

    /// The right side that gives them.
    pub(super) fn down(&self) -> Option<&'a Packed> {
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

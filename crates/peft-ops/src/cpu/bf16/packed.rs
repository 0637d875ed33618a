//! Right sides of products, in the order that kernels want.

use rayon::prelude::*;

use super::{COLUMNS, Element, LANES, aligned, kernel};
use crate::cpu::matrix::Matrix;

/// Columns of a right side, packed: see [`Packed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Panels<'a> {
    pairs: &'a [u32],
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl<'a> Panels<'a> {
    pub(super) fn new(pairs: &'a [u32], [rows, columns]: [usize; 2]) -> Self {
        assert_eq!(pairs.len(), packed_len([rows, columns]));
        Self {
            pairs,
            rows,
            columns,
        }
    }

    /// Pairs of a column.
    pub(super) fn pairs(&self) -> usize {
        self.rows.div_ceil(2)
    }

    /// 32 columns: their first pairs, their second ones, and so on.
    pub(super) fn panel(&self, index: usize) -> &'a [u32] {
        let len = self.pairs() * COLUMNS;
        &self.pairs[index * len..(index + 1) * len]
    }

    /// `count` columns from `first` on, which begins a panel.
    pub(super) fn columns(self, first: usize, count: usize) -> Self {
        assert!(first.is_multiple_of(COLUMNS) && first + count <= self.columns);
        let len = self.pairs() * COLUMNS;
        let panels = first / COLUMNS..first / COLUMNS + count.div_ceil(COLUMNS);
        Self {
            pairs: &self.pairs[panels.start * len..panels.end * len],
            rows: self.rows,
            columns: count,
        }
    }
}

/// Elements of a packed matrix.
pub(super) fn packed_len([rows, columns]: [usize; 2]) -> usize {
    rows.div_ceil(2) * columns.next_multiple_of(COLUMNS)
}

/// A matrix in bfloat16 as the right side of products.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Those of the matrix, and a few before and behind.
    pairs: Vec<u32>,
    /// Where the matrix begins: with a line of the cache.
    first: usize,
    size: [usize; 2],
}

/// Where they lie is no difference.
impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        self.panels() == other.panels()
    }
}

impl Packed {
    /// Numbers that have more bits are rounded to the nearest.
    pub(crate) fn new<T: Element>(matrix: Matrix<'_, T>) -> Self {
        Self::filled(matrix.size(), |pairs| pack(matrix, 0, pairs, true))
    }

    fn filled(size: [usize; 2], fill: impl FnOnce(&mut [u32])) -> Self {
        let mut pairs = Vec::new();
        let packed = aligned(&mut pairs, packed_len(size));
        fill(packed);
        let first = pairs.as_ptr().align_offset(size_of::<[u32; LANES]>());
        let first = first.min(pairs.len() - packed_len(size));
        Self { pairs, first, size }
    }

    /// The transposed matrix.
    pub(crate) fn transposed(&self) -> Self {
        let [columns, rows] = self.size;
        Self::filled([rows, columns], |pairs| {
            transpose(self.panels(), 0, pairs, true);
        })
    }

    pub(crate) fn panels(&self) -> Panels<'_> {
        let pairs = &self.pairs[self.first..][..packed_len(self.size)];
        Panels::new(pairs, self.size)
    }

    /// Rows and columns.
    pub(crate) fn size(&self) -> [usize; 2] {
        self.size
    }
}

/// Packs the columns of `matrix` from `first` on, as many as there is room for.
pub(super) fn pack<T: Element>(
    matrix: Matrix<'_, T>,
    first: usize,
    to: &mut [u32],
    parallel: bool,
) {
    let [rows, columns] = matrix.size();
    let len = rows.div_ceil(2) * COLUMNS;
    if len == 0 {
        return;
    }
    let kernel = kernel();
    let run = |(index, to): (usize, &mut [u32])| {
        let from = first + index * COLUMNS;
        let count = COLUMNS.min(columns - from);
        kernel.pack_panel(matrix.columns(from, count), to);
    };
    if parallel {
        to.par_chunks_exact_mut(len).enumerate().for_each(run);
    } else {
        to.chunks_exact_mut(len).enumerate().for_each(run);
    }
}

/// Packs columns of the transposed of `from`, from the column `first` on, as many as there is room for.
pub(super) fn transpose(from: Panels<'_>, first: usize, to: &mut [u32], parallel: bool) {
    let len = from.columns.div_ceil(2) * COLUMNS;
    if len == 0 {
        return;
    }
    let kernel = kernel();
    let run = |(index, to): (usize, &mut [u32])| {
        kernel.transpose(from, first / 2 + index * (COLUMNS / 2), to);
    };
    if parallel {
        to.par_chunks_exact_mut(len).enumerate().for_each(run);
    } else {
        to.chunks_exact_mut(len).enumerate().for_each(run);
    }
}

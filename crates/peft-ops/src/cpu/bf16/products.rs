//! Products on all threads, with a right side that is packed, or is packed for the product.

use std::cell::Cell;

use rayon::prelude::*;

use super::packed::{pack, packed_len, transpose};
use super::{
    Added, Beside, CHUNK, COLUMNS, Element, Factors, Kernel, LANES, LEFT, PAIRS, PARALLEL, Panels,
    RIGHT_SIDE, ROWS, Start, aligned, kernel, with_scratch,
};
use crate::cpu::matrix::{Matrix, MatrixMut};

/// `dst = start + alpha·lhs·rhs`; on all threads if it is large and `parallel`.
pub(crate) fn multiply(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    alpha: f32,
    parallel: bool,
) {
    multiply_and_add(dst, start, lhs, rhs, alpha, None, parallel);
}

/// The same, with what is `added` to it, times alpha.
fn multiply_and_add(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    alpha: f32,
    added: Option<Added<'_>>,
    parallel: bool,
) {
    let threads = check(dst, lhs, rhs, parallel);
    let kernel = kernel();
    let [block_rows, block_columns] = blocks(kernel, lhs.size()[0], rhs, threads);
    let run = |([row, column], mut block): ([usize; 2], MatrixMut<'_>)| {
        let [rows, columns] = block.size();
        let (lhs, rhs) = (lhs.rows(row, rows), rhs.columns(column, columns));
        let start = start.columns(column, columns);
        let beside = added.map_or(Beside::Nothing, |added| {
            Beside::Added(added.rows(row).columns(column, columns))
        });
        kernel.multiply(&mut block, start, lhs, rhs, alpha, beside);
    };
    let grid = dst.grid(block_rows, block_columns);
    if threads == 1 {
        grid.into_iter().for_each(run);
    } else {
        grid.into_par_iter().for_each(run);
    }
}

/// Rows of a product, and of what they give with A.
type RowsOf<'a> = (([usize; 2], MatrixMut<'a>), &'a mut [f32]);

/// `dst = start + lhs·rhs + (lhs·A)·B`, and `lhs·A` to `through`.
pub(crate) fn multiply_with(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    factors: &Factors,
    through: &mut [f32],
    parallel: bool,
) {
    let threads = check(dst, lhs, rhs, parallel);
    let ([rows, _], columns) = (lhs.size(), rhs.columns);
    let kernel = kernel();
    let [block, _] = blocks(kernel, rows, rhs, threads);
    if rows.div_ceil(block.max(1)) < threads || factors.rank() == 0 {
        // Too few blocks of rows: columns are split, too, and all of them need `lhs·A`.
        factors.through(lhs, through, parallel);
        let added = Some(factors.added(through));
        multiply_and_add(dst, start, lhs, rhs, 1.0, added, parallel);
        return;
    }
    let run = |(([row, _], mut dst), through): RowsOf<'_>| {
        let lhs = lhs.rows(row, dst.size()[0]);
        let beside = Beside::Factors(factors, through);
        kernel.multiply(&mut dst, start, lhs, rhs, 1.0, beside);
    };
    let grid = dst.grid(block, columns).into_iter();
    let parts: Vec<RowsOf<'_>> = grid
        .zip(through.chunks_mut(block * factors.rank()))
        .collect();
    if threads == 1 {
        parts.into_iter().for_each(run);
    } else {
        parts.into_par_iter().for_each(run);
    }
}

impl Factors {
    /// `x A`, `[rows, r]`.
    pub(crate) fn through(&self, x: Matrix<'_>, to: &mut [f32], parallel: bool) {
        let down = self.down();
        let [rows, columns] = [x.size()[0], down.size()[1]];
        let mut halves = vec![0.0; rows * columns];
        let mut dst = MatrixMut::new(&mut halves, rows, columns);
        multiply(&mut dst, Start::Nothing, x, down.panels(), 1.0, parallel);
        self.fold(&halves, to);
    }
}

/// How many threads compute a product, whose shapes must fit.
fn check(dst: &MatrixMut<'_>, lhs: Matrix<'_>, rhs: Panels<'_>, parallel: bool) -> usize {
    let ([rows, inner], columns) = (lhs.size(), rhs.columns);
    assert_eq!(
        (dst.size(), inner),
        ([rows, columns], rhs.rows),
        "shapes of a product"
    );
    let work = rows.saturating_mul(columns).saturating_mul(inner);
    if parallel && work >= PARALLEL {
        rayon::current_num_threads()
    } else {
        1
    }
}

/// Rows and columns of the blocks that a product is split into.
fn blocks(kernel: Kernel, rows: usize, rhs: Panels<'_>, threads: usize) -> [usize; 2] {
    let panels = rhs.columns.div_ceil(COLUMNS);
    let pairs = rhs.pairs().clamp(1, PAIRS);
    let step = kernel.rows();
    // What is packed at a time fits the cache.
    let fitting = (LEFT / (pairs * LANES) * ROWS).max(step);
    let block = |across: usize| rows.div_ceil(across).next_multiple_of(step).min(rows);
    let mut across = rows.div_ceil(fitting).max(1);
    if threads == 1 {
        return [block(across), rhs.columns];
    }
    // A few blocks for each thread: they do not all take the same time.
    let wanted = 4 * threads;
    across = across.max(wanted.min(rows / (4 * step)).max(1));
    let along = wanted.div_ceil(across).min(panels);
    [block(across), panels.div_ceil(along) * COLUMNS]
}

/// [`multiply`] with a right side that is packed for this product, a part at a time, and with what is `added`.
pub(crate) fn multiply_by<T: Element>(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    rhs: Matrix<'_, T>,
    alpha: f32,
    added: Option<Added<'_>>,
    parallel: bool,
) {
    let fill = |part: &Part, to: &mut [u32]| {
        pack(rhs.rows(part.row, part.rows), part.column, to, parallel);
    };
    in_parts(dst, start, lhs, rhs.size(), alpha, added, parallel, fill);
}

/// [`multiply`] with the transposed of what is packed, which is brought into order a part at a time, and with what is
/// `added`.
pub(crate) fn multiply_by_transposed(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    alpha: f32,
    added: Option<Added<'_>>,
    parallel: bool,
) {
    let size = [rhs.columns, rhs.rows];
    let fill = |part: &Part, to: &mut [u32]| {
        transpose(rhs.columns(part.row, part.rows), part.column, to, parallel);
    };
    in_parts(dst, start, lhs, size, alpha, added, parallel, fill);
}

thread_local! {
    /// Rows that were decoded.
    static DECODED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// [`multiply`] with the transposed of `[rows, columns]`, whose rows from one on `decode` writes, and with what is
/// `added`: rows are decoded 16 at a time and rounded while they are in the cache.
pub(crate) fn multiply_by_rows(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    [rows, columns]: [usize; 2],
    decode: impl Fn(usize, &mut [f32]) + Sync,
    added: Option<Added<'_>>,
) {
    let kernel = kernel();
    let len = columns.div_ceil(2) * COLUMNS;
    let panel = |first: usize, to: &mut [u32]| {
        let mut decoded = DECODED.take();
        for (half, first) in [first, first + LANES].into_iter().enumerate() {
            let count = LANES.min(rows.saturating_sub(first));
            decoded.resize(count * columns, 0.0);
            if count > 0 {
                decode(first, &mut decoded);
            }
            let rows = Matrix::new(&decoded, count, columns);
            f32::pack(kernel, rows, &mut to[half * LANES..], COLUMNS);
        }
        DECODED.set(decoded);
    };
    let wide = (CHUNK / len.max(1)).max(1) * COLUMNS;
    with_scratch(&RIGHT_SIDE, |scratch| {
        for first in (0..rows).step_by(wide) {
            let size = [columns, wide.min(rows - first)];
            let packed = aligned(scratch, packed_len(size));
            packed
                .par_chunks_exact_mut(len.max(1))
                .enumerate()
                .for_each(|(index, to)| panel(first + index * COLUMNS, to));
            let mut dst = dst.column_block(first, size[1]);
            let (start, rhs) = (start.columns(first, size[1]), Panels::new(packed, size));
            let added = added.map(|added| added.columns(first, size[1]));
            multiply_and_add(&mut dst, start, lhs, rhs, 1.0, added, true);
        }
    });
}

/// A part of a right side.
struct Part {
    row: usize,
    rows: usize,
    column: usize,
}

/// Hands `fill` a part of a right side of `[rows, columns]`, and room for it; multiplies with it.
fn in_parts(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    [rows, columns]: [usize; 2],
    alpha: f32,
    added: Option<Added<'_>>,
    parallel: bool,
    fill: impl Fn(&Part, &mut [u32]),
) {
    let most = |all: usize, most: usize| all.div_ceil(all.div_ceil(most).max(1));
    let deep = most(rows, 2 * PAIRS).next_multiple_of(COLUMNS).max(1);
    let wide = CHUNK / deep.div_ceil(2);
    let wide = most(columns, wide).next_multiple_of(COLUMNS).max(1);
    with_scratch(&RIGHT_SIDE, |scratch| {
        for column in (0..columns).step_by(wide) {
            let width = wide.min(columns - column);
            let mut dst = dst.column_block(column, width);
            let mut row = 0;
            loop {
                let part = Part {
                    row,
                    rows: deep.min(rows - row),
                    column,
                };
                let size = [part.rows, width];
                let packed = aligned(scratch, packed_len(size));
                fill(&part, packed);
                let start = if row == 0 {
                    start.columns(column, width)
                } else {
                    Start::There
                };
                let (lhs, rhs) = (lhs.columns(row, part.rows), Panels::new(packed, size));
                row += part.rows;
                // What is added comes with the last part.
                let added = added.filter(|_| row >= rows);
                let added = added.map(|added| added.columns(column, width));
                multiply_and_add(&mut dst, start, lhs, rhs, alpha, added, parallel);
                if row >= rows {
                    break;
                }
            }
        }
    });
}

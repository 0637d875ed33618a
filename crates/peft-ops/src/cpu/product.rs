//! Products of matrices: of few rows by loops of our own, all others by the `gemm` crate, which Burn's CPU backend uses, too.
//!
//! Unsafe code: calls of that crate, on columns that threads write each for itself.

#![allow(unsafe_code)]

use rayon::prelude::*;

use super::buffers::{Fresh, build};
use super::matrix::{Matrix, MatrixMut};
use super::short_rows::{self, SLICE, STRIP, TILE, Way};

/// Products of fewer multiplications than this run on one thread.
pub(super) const PARALLEL_PRODUCT: usize = 1 << 20;
/// Columns of a transposed matrix that a thread takes: a multiple of this, and no more at a time than that.
const COLUMNS: usize = 16;
const MOST_COLUMNS: usize = 512;

/// What a product does with what is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Replaces it.
    Replace,
    /// Adds to it.
    Add,
}

/// Rows, inner columns and columns of a product, whose shapes must fit.
fn sizes(dst: &MatrixMut<'_>, lhs: Matrix<'_>, rhs: Matrix<'_>) -> [usize; 3] {
    let ([rows, depth], [inner, cols]) = (lhs.size(), rhs.size());
    assert_eq!(
        (dst.size(), depth),
        ([rows, cols], inner),
        "shapes of a product"
    );
    [rows, depth, cols]
}

/// `dst = alpha · lhs · rhs`, or adds that to it; on all threads if it is large and `parallel`.
pub(crate) fn multiply(
    dst: &mut MatrixMut<'_>,
    mode: Mode,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    alpha: f32,
    parallel: bool,
) {
    let [rows, _, _] = sizes(dst, lhs, rhs);
    if let Some(way) = way_of(lhs, rhs) {
        if mode == Mode::Replace {
            (0..rows).for_each(|row| dst.row(row).fill(0.0));
        }
        add_short(way, dst, lhs, rhs, alpha, parallel);
        return;
    }
    gemm_into(dst, mode, lhs, rhs, alpha, parallel);
}

/// `alpha · lhs · rhs`, dense and row-major.
pub(crate) fn product(lhs: Matrix<'_>, rhs: Matrix<'_>, alpha: f32) -> Vec<f32> {
    let ([rows, _], [_, cols]) = (lhs.size(), rhs.size());
    let [out] = build(rows, [cols], rows, |_, [out]| {
        [out.product(lhs, rhs, alpha, true)]
    });
    out
}

impl<'a> Fresh<'a> {
    /// `alpha · lhs · rhs`, dense and row-major.
    pub(crate) fn product(
        self,
        lhs: Matrix<'_>,
        rhs: Matrix<'_>,
        alpha: f32,
        parallel: bool,
    ) -> &'a mut [f32] {
        let ([rows, depth], [inner, cols]) = (lhs.size(), rhs.size());
        assert_eq!(depth, inner, "shapes of a product");
        if let Some(way) = way_of(lhs, rhs) {
            assert_eq!(self.len(), rows * cols, "size of a product");
            let out = self.zeros();
            let mut sum = MatrixMut::new(out, rows, cols);
            add_short(way, &mut sum, lhs, rhs, alpha, parallel);
            return out;
        }
        let write = |out: &mut MatrixMut<'_>| {
            gemm_into(out, Mode::Replace, lhs, rhs, alpha, parallel);
        };
        // SAFETY: a product that replaces writes every element of the destination and reads none.
        unsafe { self.written([rows, cols], write) }
    }
}

/// How a product of few rows is computed, if not by the `gemm` crate at once.
fn way_of(lhs: Matrix<'_>, rhs: Matrix<'_>) -> Option<Way> {
    let ([rows, depth], [_, cols]) = (lhs.size(), rhs.size());
    short_rows::way([rows, depth, cols], lhs.strides(), rhs.strides())
}

/// Adds `alpha · lhs · rhs`, of few rows.
fn add_short(
    way: Way,
    dst: &mut MatrixMut<'_>,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    alpha: f32,
    parallel: bool,
) {
    let ([rows, depth], [_, cols]) = (lhs.size(), rhs.size());
    let threads = rayon::current_num_threads();
    let parallel = parallel && threads > 1 && rows * cols * depth >= PARALLEL_PRODUCT;
    let share = if parallel {
        cols.div_ceil(4 * threads).max(8 * TILE)
    } else {
        cols
    };
    let most = match way {
        Way::Dots => share,
        Way::Slices => STRIP,
    };
    let width = share.min(most).next_multiple_of(TILE);
    let task = |([_, first], mut block): ([usize; 2], MatrixMut<'_>)| {
        let [_, cols] = block.size();
        let rhs = rhs.columns(first, cols);
        if way == Way::Dots {
            let (lhs, rhs) = (lhs.contiguous_rows(), rhs.t().contiguous_rows());
            short_rows::add_dots(&mut block.all_rows(), lhs, rhs, alpha);
            return;
        }
        for first in (0..depth).step_by(SLICE) {
            let slice = SLICE.min(depth - first);
            let (lhs, rhs) = (lhs.columns(first, slice), rhs.rows(first, slice));
            gemm_into(&mut block, Mode::Add, lhs, rhs, alpha, false);
        }
    };
    let blocks = dst.grid(rows, width);
    if parallel {
        blocks.into_par_iter().for_each(task);
    } else {
        blocks.into_iter().for_each(task);
    }
}

/// The `gemm` crate's product, of matrices whose shapes fit. One that replaces reads nothing of `dst`.
fn gemm_into(
    dst: &mut MatrixMut<'_>,
    mode: Mode,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    alpha: f32,
    parallel: bool,
) {
    let [rows, depth, cols] = sizes(dst, lhs, rhs);
    let (left, [left_row, left_col]) = lhs.parts();
    let (right, [right_row, right_col]) = rhs.parts();
    let work = rows.saturating_mul(cols).saturating_mul(depth);
    let threads = rayon::current_num_threads();
    let parallel = parallel && work >= PARALLEL_PRODUCT && threads > 1;
    // A transposed matrix is brought into order first, by the `gemm` crate on one thread: here each brings its part.
    if parallel && right_row == 1 && cols >= 2 * COLUMNS {
        let blocks = cols.div_ceil(MOST_COLUMNS).next_multiple_of(threads);
        let width = cols.div_ceil(blocks).next_multiple_of(COLUMNS);
        let blocks = dst.grid(rows, width).into_par_iter();
        blocks.for_each(|([_, first], mut block)| {
            let [_, cols] = block.size();
            gemm_into(
                &mut block,
                mode,
                lhs,
                rhs.columns(first, cols),
                alpha,
                false,
            );
        });
        return;
    }
    let parallelism = if parallel {
        gemm::Parallelism::Rayon(0)
    } else {
        gemm::Parallelism::None
    };
    let (start, row_stride) = dst.parts();
    // SAFETY: the views were checked to lie within their slices when they were made, and the destination, which is
    // borrowed alone, has their rows and columns.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            depth,
            start,
            1,
            row_stride.cast_signed(),
            mode == Mode::Add,
            left.as_ptr(),
            left_col.cast_signed(),
            left_row.cast_signed(),
            right.as_ptr(),
            right_col.cast_signed(),
            right_row.cast_signed(),
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_of_views_is_the_product() {
        let a: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..20).map(|i| (i as f32).sin()).collect();
        // 3 x 2 out of 3 x 4, times the transposed of 5 x 2 out of 5 x 4.
        let (lhs, rhs) = (
            Matrix::strided(&a, 3, 2, 4),
            Matrix::strided(&b, 5, 2, 4).t(),
        );
        let out = product(lhs, rhs, 2.0);
        for row in 0..3 {
            for col in 0..5 {
                let expected: f32 = (0..2).map(|k| 2.0 * a[row * 4 + k] * b[col * 4 + k]).sum();
                assert!((out[row * 5 + col] - expected).abs() < 1e-5);
            }
        }
        let mut sum = vec![1.0; 15];
        multiply(
            &mut MatrixMut::new(&mut sum, 3, 5),
            Mode::Add,
            lhs,
            rhs,
            2.0,
            true,
        );
        assert!((sum[7] - out[7] - 1.0).abs() < 1e-5);
    }

    #[test]
    fn an_empty_inner_dimension_gives_zeros() {
        let out = product(Matrix::new(&[], 3, 0), Matrix::new(&[], 0, 4), 1.0);
        assert_eq!(out, vec![0.0; 12]);
    }
}

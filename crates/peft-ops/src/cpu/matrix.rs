//! Matrices in slices, products of them, and buffers that are written before they are read.
//!
//! Unsafe code: calls of the `gemm` crate (the one that Burn's CPU backend uses), memory that is not cleared first,
//! and blocks of one buffer written by several threads.

#![allow(unsafe_code)]

use std::marker::PhantomData;

use rayon::prelude::*;

use super::short_rows::{self, Rows, SLICE, STRIP, TILE, Way};

/// Products of fewer multiplications than this run on one thread.
pub(super) const PARALLEL_PRODUCT: usize = 1 << 20;
/// Columns of a transposed matrix that a thread takes: a multiple of this, and no more at a time than that.
const COLUMNS: usize = 16;
const MOST_COLUMNS: usize = 512;
/// Passes over fewer elements than this run on one thread.
const PARALLEL_ELEMENTS: usize = 1 << 15;
/// Elements that one task of a pass works on: 64 KiB, of which two or three fit the second-level cache.
const TASK_ELEMENTS: usize = 1 << 14;

/// A matrix that is read.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major, dense.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major, each row starting `row_stride` elements after the one before.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self::view(data, [rows, cols], [row_stride, 1])
    }

    /// A matrix of `[rows, cols]` whose neighbours in a column and in a row are so far apart.
    pub(crate) fn view(
        data: &'a [f32],
        [rows, cols]: [usize; 2],
        [row_stride, col_stride]: [usize; 2],
    ) -> Self {
        assert!(
            fits(data.len(), [rows, cols], [row_stride, col_stride]),
            "{rows} x {cols} with strides {row_stride} and {col_stride} do not fit {} elements",
            data.len()
        );
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        }
    }

    /// Rows and columns.
    pub(crate) fn size(self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// All numbers that it may lie among, the first of them its own, and how far neighbours in a column and in a row
    /// are apart.
    pub(crate) fn parts(self) -> (&'a [f32], [usize; 2]) {
        (self.data, [self.row_stride, self.col_stride])
    }

    fn strides(self) -> [usize; 2] {
        [self.row_stride, self.col_stride]
    }

    /// Rows whose numbers are neighbours.
    fn contiguous_rows(self) -> Rows<'a> {
        assert!(self.col_stride == 1 || self.cols < 2);
        Rows {
            data: self.data,
            stride: self.row_stride,
            len: self.cols,
        }
    }

    /// `cols` columns from `first` on.
    pub(crate) fn columns(self, first: usize, cols: usize) -> Self {
        self.t().rows(first, cols).t()
    }

    /// `rows` rows from `first` on.
    pub(crate) fn rows(self, first: usize, rows: usize) -> Self {
        assert!(first + rows <= self.rows);
        let from = (first * self.row_stride).min(self.data.len());
        Self {
            data: &self.data[from..],
            rows,
            ..self
        }
    }

    /// The transposed matrix; nothing moves.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

fn fits(len: usize, size: [usize; 2], strides: [usize; 2]) -> bool {
    // The offset of the last element.
    let last = size
        .iter()
        .zip(strides)
        .try_fold(0_usize, |last, (size, stride)| {
            last.checked_add(size.saturating_sub(1).checked_mul(stride)?)
        });
    size.contains(&0) || last.is_some_and(|last| last < len)
}

/// A row-major matrix that is written; possibly a block of columns of a larger one.
pub(crate) struct MatrixMut<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: as `&mut [f32]`, which it stands for: blocks made from one buffer do not overlap. That is all that is
// needed: a block is moved to the one thread that writes it, and no thread gets a reference to another's, which
// would need `Sync`.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// Dense.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert!(
            fits(data.len(), [rows, cols], [cols, 1]),
            "{rows} x {cols} does not fit {} elements",
            data.len()
        );
        Self {
            start: data.as_mut_ptr(),
            rows,
            cols,
            row_stride: cols,
            owner: PhantomData,
        }
    }

    /// `rows` rows from `first` on.
    pub(crate) fn row_block(&mut self, first: usize, rows: usize) -> MatrixMut<'_> {
        assert!(first + rows <= self.rows);
        // No rows behind the last one may begin beyond the memory.
        let offset = if rows == 0 {
            0
        } else {
            first * self.row_stride
        };
        MatrixMut {
            // SAFETY: the block's rows are rows of this matrix; without any, it begins where that does.
            start: unsafe { self.start.add(offset) },
            rows,
            cols: self.cols,
            row_stride: self.row_stride,
            owner: PhantomData,
        }
    }

    /// `cols` columns from `first` on.
    pub(crate) fn column_block(&mut self, first: usize, cols: usize) -> MatrixMut<'_> {
        assert!(first + cols <= self.cols);
        let offset = if self.rows == 0 { 0 } else { first };
        MatrixMut {
            // SAFETY: the block's columns are columns of this matrix, whose first row ends no sooner; without rows,
            // it begins where that does.
            start: unsafe { self.start.add(offset) },
            rows: self.rows,
            cols,
            row_stride: self.row_stride,
            owner: PhantomData,
        }
    }

    /// Rows and columns.
    pub(crate) fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The first number, and how far neighbours in a column are apart.
    pub(super) fn parts(&mut self) -> (*mut f32, usize) {
        (self.start, self.row_stride)
    }

    /// All of it in blocks of `rows` and `cols`, fewer at its ends, with the first row and column of each.
    pub(crate) fn grid(&mut self, rows: usize, cols: usize) -> Vec<([usize; 2], MatrixMut<'_>)> {
        let mut blocks = Vec::new();
        for row in (0..self.rows).step_by(rows.max(1)) {
            for col in (0..self.cols).step_by(cols.max(1)) {
                let block = MatrixMut {
                    // SAFETY: an element of this matrix.
                    start: unsafe { self.start.add(row * self.row_stride + col) },
                    rows: rows.min(self.rows - row),
                    cols: cols.min(self.cols - col),
                    row_stride: self.row_stride,
                    owner: PhantomData,
                };
                blocks.push(([row, col], block));
            }
        }
        blocks
    }

    /// All of it in blocks of `width` columns, of which the last may be narrower.
    fn column_blocks(&mut self, width: usize) -> Vec<MatrixMut<'_>> {
        let firsts = (0..self.cols).step_by(width.max(1));
        firsts
            .map(|first| MatrixMut {
                // SAFETY: as in `column_block`; no two of these blocks have a column in common, and this matrix is
                // borrowed as long as they are.
                start: unsafe { self.start.add(if self.rows == 0 { 0 } else { first }) },
                rows: self.rows,
                cols: width.min(self.cols - first),
                row_stride: self.row_stride,
                owner: PhantomData,
            })
            .collect()
    }

    /// All rows.
    fn all_rows(&mut self) -> Vec<&mut [f32]> {
        (0..self.rows)
            .map(|row| {
                // SAFETY: as in `row`; no two rows overlap.
                unsafe {
                    std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride), self.cols)
                }
            })
            .collect()
    }

    /// One row.
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the row lies in the memory that this matrix borrows alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride), self.cols) }
    }
}

/// What a product does with what is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Replaces it.
    Replace,
    /// Adds to it.
    Add,
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
    assert_eq!(
        (dst.rows, dst.cols, lhs.cols),
        (lhs.rows, rhs.cols, rhs.rows),
        "shapes of a product"
    );
    if let Some(way) = way_of(lhs, rhs) {
        if mode == Mode::Replace {
            (0..dst.rows).for_each(|row| dst.row(row).fill(0.0));
        }
        add_short(way, dst, lhs, rhs, alpha, parallel);
        return;
    }
    // SAFETY: the destination is borrowed alone and holds numbers.
    unsafe { gemm_into(dst.start, dst.row_stride, mode, lhs, rhs, alpha, parallel) }
}

/// How a product of few rows is computed, if not by the `gemm` crate at once.
fn way_of(lhs: Matrix<'_>, rhs: Matrix<'_>) -> Option<Way> {
    let size = [lhs.rows, lhs.cols, rhs.cols];
    short_rows::way(size, lhs.strides(), rhs.strides())
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
    let (depth, cols) = (lhs.cols, rhs.cols);
    let threads = rayon::current_num_threads();
    let parallel = parallel && threads > 1 && lhs.rows * cols * depth >= PARALLEL_PRODUCT;
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
    let task = |(index, mut block): (usize, MatrixMut<'_>)| {
        let rhs = rhs.columns(index * width, block.cols);
        if way == Way::Dots {
            let (lhs, rhs) = (lhs.contiguous_rows(), rhs.t().contiguous_rows());
            short_rows::add_dots(&mut block.all_rows(), lhs, rhs, alpha);
            return;
        }
        for first in (0..depth).step_by(SLICE) {
            let slice = SLICE.min(depth - first);
            let (lhs, rhs) = (lhs.columns(first, slice), rhs.rows(first, slice));
            let (start, row_stride) = (block.start, block.row_stride);
            // SAFETY: the block is borrowed alone and holds numbers.
            unsafe { gemm_into(start, row_stride, Mode::Add, lhs, rhs, alpha, false) }
        }
    };
    let blocks = dst.column_blocks(width);
    if parallel {
        blocks.into_par_iter().enumerate().for_each(task);
    } else {
        blocks.into_iter().enumerate().for_each(task);
    }
}

/// `alpha · lhs · rhs`, dense and row-major.
pub(crate) fn product(lhs: Matrix<'_>, rhs: Matrix<'_>, alpha: f32) -> Vec<f32> {
    let rows = lhs.rows;
    let [out] = build(rows, [rhs.cols], rows, |_, [out]| {
        [out.product(lhs, rhs, alpha, true)]
    });
    out
}

/// # Safety
///
/// `dst` must be valid for writes of `lhs.rows` rows of `rhs.cols` elements, `row_stride` apart,
/// and hold numbers already where `into` adds.
unsafe fn gemm_into(
    dst: *mut f32,
    row_stride: usize,
    mode: Mode,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    alpha: f32,
    parallel: bool,
) {
    let work = lhs.rows.saturating_mul(rhs.cols).saturating_mul(lhs.cols);
    let threads = rayon::current_num_threads();
    let parallel = parallel && work >= PARALLEL_PRODUCT && threads > 1;
    // A transposed matrix is brought into order first, by the `gemm` crate on one thread: here each brings its part.
    if parallel && rhs.row_stride == 1 && rhs.cols >= 2 * COLUMNS {
        let blocks = rhs.cols.div_ceil(MOST_COLUMNS).next_multiple_of(threads);
        let width = rhs.cols.div_ceil(blocks).next_multiple_of(COLUMNS);
        let start = Start(dst);
        (0..rhs.cols.div_ceil(width))
            .into_par_iter()
            .for_each(|block| {
                let first = block * width;
                let part = rhs.columns(first, width.min(rhs.cols - first));
                // SAFETY: the destination's columns are this block's alone.
                unsafe {
                    let dst = start.at(first);
                    gemm_into(dst, row_stride, mode, lhs, part, alpha, false);
                }
            });
        return;
    }
    let parallelism = if parallel {
        gemm::Parallelism::Rayon(0)
    } else {
        gemm::Parallelism::None
    };
    // SAFETY: the views were checked to lie within their slices when they were made.
    unsafe {
        gemm::gemm(
            lhs.rows,
            rhs.cols,
            lhs.cols,
            dst,
            1,
            row_stride.cast_signed(),
            mode == Mode::Add,
            lhs.data.as_ptr(),
            lhs.col_stride.cast_signed(),
            lhs.row_stride.cast_signed(),
            rhs.data.as_ptr(),
            rhs.col_stride.cast_signed(),
            rhs.row_stride.cast_signed(),
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Memory that was not written yet: it becomes numbers by being filled whole.
pub(crate) struct Fresh<'a> {
    start: *mut f32,
    len: usize,
    owner: PhantomData<&'a mut [f32]>,
}

impl<'a> Fresh<'a> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Zeros.
    pub(crate) fn zeros(self) -> &'a mut [f32] {
        // SAFETY: the memory is borrowed alone, and written before the reference is made.
        unsafe {
            self.start.write_bytes(0, self.len);
            std::slice::from_raw_parts_mut(self.start, self.len)
        }
    }

    /// These numbers.
    pub(crate) fn copy(self, from: &[f32]) -> &'a mut [f32] {
        assert_eq!(self.len, from.len());
        // SAFETY: as above; memory that is borrowed alone overlaps nothing that is read.
        unsafe {
            self.start.copy_from_nonoverlapping(from.as_ptr(), self.len);
            std::slice::from_raw_parts_mut(self.start, self.len)
        }
    }

    /// What `write` makes of it, as a matrix of `[rows, cols]`.
    ///
    /// # Safety
    ///
    /// `write` must write every element, and read none before.
    pub(super) unsafe fn written(
        self,
        [rows, cols]: [usize; 2],
        write: impl FnOnce(&mut MatrixMut<'_>),
    ) -> &'a mut [f32] {
        assert_eq!(self.len, rows * cols, "size of a product");
        let mut whole = MatrixMut {
            start: self.start,
            rows,
            cols,
            row_stride: cols,
            owner: PhantomData,
        };
        write(&mut whole);
        // SAFETY: the memory is borrowed alone, and was written.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// `alpha · lhs · rhs`, dense and row-major.
    pub(crate) fn product(
        self,
        lhs: Matrix<'_>,
        rhs: Matrix<'_>,
        alpha: f32,
        parallel: bool,
    ) -> &'a mut [f32] {
        assert_eq!(lhs.cols, rhs.rows, "shapes of a product");
        assert_eq!(self.len, lhs.rows * rhs.cols, "size of a product");
        if let Some(way) = way_of(lhs, rhs) {
            let out = self.zeros();
            let mut sum = MatrixMut::new(out, lhs.rows, rhs.cols);
            add_short(way, &mut sum, lhs, rhs, alpha, parallel);
            return out;
        }
        // SAFETY: as above; a product that replaces writes every element of the destination and
        // reads none.
        unsafe {
            gemm_into(
                self.start,
                rhs.cols,
                Mode::Replace,
                lhs,
                rhs,
                alpha,
                parallel,
            );
            std::slice::from_raw_parts_mut(self.start, self.len)
        }
    }
}

/// `rows · width` numbers, filled in parallel: `fill(first, rows)` gets whole rows, zeroed, of which
/// the first has the number `first`.
pub(crate) fn build_rows(
    rows: usize,
    width: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let [out] = build(rows, [width], task_rows(rows, width), |first, [part]| {
        let part = part.zeros();
        fill(first, part);
        [part]
    });
    out
}

/// `N` buffers of `rows` rows, filled in parallel `block` rows at a time: `fill(first, parts)` gets
/// its rows of each, of which the first has the number `first`, and returns them filled.
pub(crate) fn build<const N: usize>(
    rows: usize,
    widths: [usize; N],
    block: usize,
    fill: impl for<'a> Fn(usize, [Fresh<'a>; N]) -> [&'a mut [f32]; N] + Sync,
) -> [Vec<f32>; N] {
    let mut buffers = widths.map(|width| Vec::<f32>::with_capacity(rows * width));
    let starts = buffers.each_mut().map(|buffer| Start(buffer.as_mut_ptr()));
    let run = |task: usize| {
        let first = task * block;
        let count = block.min(rows - first);
        let parts: [_; N] = std::array::from_fn(|i| Fresh {
            // SAFETY: within the buffer's capacity; no other task has these rows.
            start: unsafe { starts[i].0.add(first * widths[i]) },
            len: count * widths[i],
            owner: PhantomData,
        });
        let expected = parts.each_ref().map(|part| (part.start, part.len));
        let filled = fill(first, parts).map(|part| (part.as_mut_ptr(), part.len()));
        assert_eq!(filled, expected, "a part that was not filled");
    };
    let tasks = rows.div_ceil(block.max(1));
    if tasks == 1 || rows * widths.iter().sum::<usize>() < PARALLEL_ELEMENTS {
        (0..tasks).for_each(run);
    } else {
        (0..tasks).into_par_iter().for_each(run);
    }
    for (buffer, width) in buffers.iter_mut().zip(widths) {
        // SAFETY: the tasks cover all rows, and each has shown that its own are filled.
        unsafe { buffer.set_len(rows * width) };
    }
    buffers
}

/// Changes rows in place, in parallel; `change` as in [`build_rows`].
pub(crate) fn change_rows(
    data: &mut [f32],
    width: usize,
    change: impl Fn(usize, &mut [f32]) + Sync,
) {
    let task = task_rows(data.len() / width.max(1), width);
    change_blocks(data, width, task, change);
}

/// The same, `task` rows at a time.
pub(crate) fn change_blocks(
    data: &mut [f32],
    width: usize,
    task: usize,
    change: impl Fn(usize, &mut [f32]) + Sync,
) {
    if data.is_empty() {
        return;
    }
    let run = |(index, part): (usize, &mut [f32])| change(index * task, part);
    if data.len() < PARALLEL_ELEMENTS {
        data.chunks_mut(task * width).enumerate().for_each(run);
    } else {
        data.par_chunks_mut(task * width).enumerate().for_each(run);
    }
}

/// How many rows one task of a pass gets.
pub(crate) fn task_rows(rows: usize, width: usize) -> usize {
    (TASK_ELEMENTS / width.max(1)).clamp(1, rows.max(1))
}

/// Sums over all rows: `add(first, last, sums)` adds those of the rows `first..last` to `sums`.
///
/// The partial sums are added in order, so the result does not depend on the threads.
pub(crate) fn sum_rows(
    rows: usize,
    width: usize,
    sums: usize,
    add: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    // Few parts: each has sums of its own.
    let task = (rows.div_ceil(64)).max(task_rows(rows, width)).max(1);
    let partial: Vec<Vec<f32>> = (0..rows.div_ceil(task))
        .into_par_iter()
        .map(|index| {
            let mut partial = vec![0.0; sums];
            add(index * task, ((index + 1) * task).min(rows), &mut partial);
            partial
        })
        .collect();
    let mut total = vec![0.0; sums];
    for partial in partial {
        for (total, partial) in total.iter_mut().zip(partial) {
            *total += partial;
        }
    }
    total
}

/// Where the blocks of one buffer lie: `batch` matrices of `rows` rows, each with one block of
/// `cols` columns for each group.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// `N` buffers, each `[batch, rows, groups · cols]`, built block by block in parallel:
/// `fill(batch, group, blocks, scratch)` gets its block of each, zeroed, and `scratch` numbers to work
/// with, whatever they were.
pub(crate) fn build_blocks<const N: usize>(
    batch: usize,
    groups: usize,
    shapes: [Blocks; N],
    scratch: usize,
    fill: impl Fn(usize, usize, [MatrixMut<'_>; N], &mut [f32]) + Sync,
) -> [Vec<f32>; N] {
    let len = |shape: Blocks| batch * shape.rows * groups * shape.cols;
    let mut buffers = shapes.map(|shape| Vec::<f32>::with_capacity(len(shape)));
    {
        let starts = buffers.each_mut().map(|buffer| Start(buffer.as_mut_ptr()));
        let run = |scratch: &mut Vec<f32>, task: usize| {
            let (item, group) = (task / groups, task % groups);
            let blocks = std::array::from_fn(|i| {
                let Blocks { rows, cols } = shapes[i];
                let offset = if rows == 0 {
                    0
                } else {
                    item * rows * groups * cols + group * cols
                };
                // SAFETY: within the buffer's capacity, which is nothing without rows, and no other task has the
                // same rows and columns.
                let start = unsafe { starts[i].0.add(offset) };
                for row in 0..rows {
                    // SAFETY: a row of the block.
                    unsafe { start.add(row * groups * cols).write_bytes(0, cols) };
                }
                MatrixMut {
                    start,
                    rows,
                    cols,
                    row_stride: groups * cols,
                    owner: PhantomData,
                }
            });
            fill(item, group, blocks, scratch);
        };
        (0..batch * groups)
            .into_par_iter()
            .for_each_init(|| vec![0.0; scratch], run);
    }
    for (buffer, shape) in buffers.iter_mut().zip(shapes) {
        // SAFETY: the blocks cover the buffer, and each was cleared.
        unsafe { buffer.set_len(len(shape)) };
    }
    buffers
}

/// The start of a buffer that tasks share.
#[derive(Clone, Copy)]
struct Start(*mut f32);

impl Start {
    /// # Safety
    ///
    /// The buffer must have so many elements, or end there.
    unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}

// SAFETY: tasks write disjoint blocks (see `build_blocks`).
unsafe impl Send for Start {}
// SAFETY: as above.
unsafe impl Sync for Start {}

#[cfg(test)]
#[allow(clippy::float_cmp)]
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

    /// Miri, and debug assertions on pointers, would see memory that is not there.
    #[test]
    fn blocks_without_rows_lie_nowhere_else() {
        let shape = Blocks { rows: 0, cols: 4 };
        let [none] = build_blocks(3, 2, [shape], 0, |_, _, [mut block], _| {
            let mut columns = block.column_block(3, 1);
            assert_eq!(columns.row_block(0, 0).rows, 0);
        });
        assert!(none.is_empty());
        let mut numbers = [0.0; 6];
        let mut matrix = MatrixMut::new(&mut numbers, 2, 3);
        let mut last = matrix.column_block(2, 1);
        let start = last.start;
        assert_eq!(last.row_block(2, 0).start, start);
        last.row_block(1, 1).row(0)[0] = 7.0;
        assert_eq!(numbers, [0.0, 0.0, 0.0, 0.0, 0.0, 7.0]);
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn a_view_beyond_its_slice_is_refused() {
        Matrix::strided(&[0.0; 10], 3, 2, 5);
    }

    #[test]
    fn rows_and_blocks_are_each_filled_once() {
        let rows = build_rows(1000, 70, |first, part| {
            for (i, row) in part.chunks_mut(70).enumerate() {
                for value in row {
                    *value += (first + i) as f32;
                }
            }
        });
        assert!(
            rows.chunks(70)
                .enumerate()
                .all(|(i, row)| row.iter().all(|v| *v == i as f32))
        );
        let [blocks] = build_blocks(
            3,
            2,
            [Blocks { rows: 5, cols: 4 }],
            0,
            |item, group, [mut block], _| {
                for row in 0..5 {
                    for value in block.row(row) {
                        *value += (item * 100 + group * 10 + row) as f32;
                    }
                }
            },
        );
        for (i, value) in blocks.iter().enumerate() {
            let (item, row, col) = (i / 40, i / 8 % 5, i % 8);
            assert_eq!(*value, (item * 100 + col / 4 * 10 + row) as f32);
        }
        let sums = sum_rows(1001, 3, 2, |first, last, sums| {
            sums[0] += (last - first) as f32;
            sums[1] += 1.0;
        });
        assert_eq!(sums[0], 1001.0);
    }
}

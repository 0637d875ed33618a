//! Matrices in slices: views, and blocks that threads write.
//!
//! Unsafe code: blocks of one buffer written by several threads.

#![allow(unsafe_code)]

use std::marker::PhantomData;

use super::short_rows::Rows;

/// A matrix that is read.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T = f32> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T: Copy> Matrix<'a, T> {
    /// Row-major, dense.
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major, each row starting `row_stride` elements after the one before.
    pub(crate) fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self::view(data, [rows, cols], [row_stride, 1])
    }

    /// A matrix of `[rows, cols]` whose neighbours in a column and in a row are so far apart.
    pub(crate) fn view(
        data: &'a [T],
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
    pub(crate) fn parts(self) -> (&'a [T], [usize; 2]) {
        (self.data, [self.row_stride, self.col_stride])
    }

    pub(super) fn strides(self) -> [usize; 2] {
        [self.row_stride, self.col_stride]
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

impl<'a> Matrix<'a> {
    /// Rows whose numbers are neighbours.
    pub(super) fn contiguous_rows(self) -> Rows<'a> {
        assert!(self.col_stride == 1 || self.cols < 2);
        Rows {
            data: self.data,
            stride: self.row_stride,
            len: self.cols,
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

    /// Rows that are `row_stride` numbers apart.
    ///
    /// # Safety
    ///
    /// The rows must be valid for writes, nobody else's as long as the matrix is there, and either hold numbers or not be
    /// read before they were written.
    pub(super) unsafe fn from_start(
        start: *mut f32,
        [rows, cols]: [usize; 2],
        row_stride: usize,
    ) -> Self {
        Self {
            start,
            rows,
            cols,
            row_stride,
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

    /// All rows.
    pub(super) fn all_rows(&mut self) -> Vec<&mut [f32]> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "do not fit")]
    fn a_view_beyond_its_slice_is_refused() {
        Matrix::strided(&[0.0; 10], 3, 2, 5);
    }
}

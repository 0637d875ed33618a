//! Buffers that are written before they are read, and passes over rows on all threads.
//!
//! Unsafe code: memory that is not cleared first, and parts of one buffer written by several threads.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::math::{Fma, vectors};
use super::matrix::MatrixMut;

/// Passes over fewer elements than this run on one thread.
const PARALLEL_ELEMENTS: usize = 1 << 15;
/// Elements that one task of a pass works on: 64 KiB, of which two or three fit the second-level cache.
const TASK_ELEMENTS: usize = 1 << 14;

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

    /// What `value` makes of each of these numbers.
    pub(crate) fn map(self, from: &[f32], value: impl Fn(Fma, f32) -> f32) -> &'a mut [f32] {
        assert_eq!(self.len, from.len());
        let to = self.start.cast::<MaybeUninit<f32>>();
        // SAFETY: the memory is borrowed alone, and its elements need not be numbers yet.
        let to = unsafe { std::slice::from_raw_parts_mut(to, self.len) };
        vectors(
            #[inline(always)]
            |fma| {
                for (to, from) in to.iter_mut().zip(from) {
                    to.write(value(fma, *from));
                }
            },
        );
        // SAFETY: all of them were written.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
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
        // SAFETY: the memory is borrowed alone, and the caller reads nothing that it did not write.
        let mut whole = unsafe { MatrixMut::from_start(self.start, [rows, cols], cols) };
        write(&mut whole);
        // SAFETY: the memory is borrowed alone, and was written.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
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
                // SAFETY: these rows are the block's alone, and hold zeros.
                unsafe { MatrixMut::from_start(start, [rows, cols], groups * cols) }
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

// SAFETY: tasks write disjoint blocks (see `build_blocks`).
unsafe impl Send for Start {}
// SAFETY: as above.
unsafe impl Sync for Start {}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "whole numbers, or the same sums")]
mod tests {
    use super::*;

    /// Miri, and debug assertions on pointers, would see memory that is not there.
    #[test]
    fn blocks_without_rows_lie_nowhere_else() {
        let shape = Blocks { rows: 0, cols: 4 };
        let [none] = build_blocks(3, 2, [shape], 0, |_, _, [mut block], _| {
            let mut columns = block.column_block(3, 1);
            assert_eq!(columns.row_block(0, 0).size(), [0, 1]);
        });
        assert!(none.is_empty());
        let mut numbers = [0.0; 6];
        let mut matrix = MatrixMut::new(&mut numbers, 2, 3);
        let mut last = matrix.column_block(2, 1);
        let (start, _) = last.parts();
        assert_eq!(last.row_block(2, 0).parts().0, start);
        last.row_block(1, 1).row(0)[0] = 7.0;
        assert_eq!(numbers, [0.0, 0.0, 0.0, 0.0, 0.0, 7.0]);
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

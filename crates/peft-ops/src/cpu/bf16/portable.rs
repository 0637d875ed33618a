//! The same without the unit: numbers are rounded in the same way, and multiplied as `f32`.

use std::cell::Cell;

use super::{COLUMNS, LANES, Panels, Start};
use crate::cpu::math::{add_row, vectors};
use crate::cpu::matrix::{Matrix, MatrixMut};
use crate::cpu::product::{Mode, multiply as multiply_f32};

/// The upper 16 bits of the number, rounded to the nearest, to even between two.
#[inline(always)]
pub(super) fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A number that is none stays so.
    let nan = bits >> 16 | 0x40;
    if value.is_nan() { nan } else { rounded }
}

/// The number of the upper 16 bits.
#[inline(always)]
pub(super) fn widen(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// As [`super::Element::pack`], of numbers that `bits` turns to bfloat16.
pub(super) fn pack<T: Copy>(
    rows: Matrix<'_, T>,
    to: &mut [u32],
    stride: usize,
    bits: impl Fn(T) -> u32,
) {
    let [count, len] = rows.size();
    let (data, [row, step]) = rows.parts();
    for pair in 0..len.div_ceil(2) {
        let to = &mut to[pair * stride..][..LANES];
        to.fill(0);
        for (index, to) in to.iter_mut().enumerate().take(count) {
            let at = index * row + 2 * pair * step;
            let low = bits(data[at]);
            let high = if 2 * pair + 1 < len {
                bits(data[at + step])
            } else {
                0
            };
            *to = low | high << 16;
        }
    }
}

/// 32 columns of the transposed matrix, from the pairs `first..` of all columns of `from`.
pub(super) fn transpose(from: Panels<'_>, first: usize, to: &mut [u32]) {
    let steps = from.columns.div_ceil(2);
    for step in 0..steps {
        let source = &from.panel(2 * step / COLUMNS)[2 * step % COLUMNS..];
        for index in 0..COLUMNS / 2 {
            let [low, high] = if first + index < from.pairs() {
                let at = (first + index) * COLUMNS;
                [source[at], source[at + 1]]
            } else {
                [0, 0]
            };
            let to = &mut to[step * COLUMNS + 2 * index..][..2];
            to[0] = low & 0xffff | high << 16;
            to[1] = low >> 16 | high & 0xffff_0000;
        }
    }
}

/// Numbers of the right side that are widened at a time: 1 MiB.
const RIGHT: usize = 1 << 18;

thread_local! {
    /// Both sides as `f32`, kept from one product to the next.
    static SIDES: Cell<[Vec<f32>; 2]> = const { Cell::new([const { Vec::new() }; 2]) };
}

/// `dst = start + alpha·lhs·rhs`.
pub(super) fn multiply(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    alpha: f32,
) {
    let [rows, inner] = lhs.size();
    let mode = match start {
        Start::There => Mode::Add,
        Start::Nothing | Start::Row(_) => Mode::Replace,
    };
    let mut sides = SIDES.take();
    let [left, right] = &mut sides;
    left.clear();
    let (data, [row, step]) = lhs.parts();
    for index in 0..rows {
        left.extend((0..inner).map(|k| widen(round(data[index * row + k * step]))));
    }
    let left = Matrix::new(left, rows, inner);
    let deep = inner.next_multiple_of(2);
    let wide = (RIGHT / (deep.max(1) * COLUMNS)).max(1) * COLUMNS;
    right.resize(deep * wide.min(rhs.columns.next_multiple_of(COLUMNS)), 0.0);
    for first in (0..rhs.columns).step_by(wide) {
        let width = wide.min(rhs.columns - first);
        let row = width.next_multiple_of(COLUMNS);
        for panel in 0..width.div_ceil(COLUMNS) {
            let source = rhs.panel(first / COLUMNS + panel);
            unpack(source, right, panel * COLUMNS, row);
        }
        let columns = Matrix::strided(right, inner, width, row);
        let mut dst = dst.column_block(first, width);
        multiply_f32(&mut dst, mode, left, columns, alpha, false);
    }
    if let Start::Row(row) = start {
        for index in 0..rows {
            add_row(dst.row(index), row);
        }
    }
    SIDES.set(sides);
}

/// A panel as [`COLUMNS`] columns of rows of `row` numbers, from the column `first` on.
fn unpack(panel: &[u32], to: &mut [f32], first: usize, row: usize) {
    vectors(
        #[inline(always)]
        |_| {
            for (pairs, to) in panel
                .chunks_exact(COLUMNS)
                .zip(to.chunks_exact_mut(2 * row))
            {
                let (low, high) = to.split_at_mut(row);
                let (low, high) = (&mut low[first..][..COLUMNS], &mut high[first..][..COLUMNS]);
                for ((pair, low), high) in pairs.iter().zip(low).zip(high) {
                    *low = widen(*pair);
                    *high = f32::from_bits(pair & 0xffff_0000);
                }
            }
        },
    );
}

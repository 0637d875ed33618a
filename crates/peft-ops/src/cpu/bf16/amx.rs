//! The kernel for AMX: `tdpbf16ps` multiplies a tile of 16 rows and 16 pairs by one of 16 pairs and 16 columns, 8,192
//! multiplications in 16 cycles.
//!
//! A panel of the right side is two tiles wide as it is. The left side is packed into tiles: 16 rows of 16 pairs, those of the
//! same rows one behind the other. Sums of 32 rows and 32 columns are in four tiles, and take their way to the output
//! through memory of 4 KiB.
//!
//! Unsafe code: reads and writes at places that the callers' assertions have checked, and the instructions themselves,
//! which only a [`Unit`] that was found lets one call.

#![allow(unsafe_code)]

mod tiles;

use std::slice;

use tiles::{Shaped, TILE};

use super::{Added, COLUMNS, LANES, Ordered, Start, avx512};
use crate::cpu::matrix::{Matrix, MatrixMut};

/// Shows that the processor has the tiles, and that the operating system permits them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit(avx512::Unit);

impl Unit {
    /// If this processor has them beside the vectors, and its operating system permits them.
    pub(super) fn detect() -> Option<Self> {
        let vectors = avx512::Unit::detect()?;
        tiles::permitted().then_some(Self(vectors))
    }

    /// What brings sides into order, and adds to sums.
    pub(super) fn vectors(self) -> avx512::Unit {
        self.0
    }
}

/// Sums of 32 rows and columns, on their way to the output.
#[repr(align(64))]
struct Sums([f32; COLUMNS * COLUMNS]);

/// 16 pairs of 32 columns: two tiles of the right side.
type Right = [u32; LANES * COLUMNS];

/// The last pairs of a panel, with zeros behind them.
#[repr(align(64))]
struct Last(Right);

/// Adds the products of the right side with tiles of 16 rows from `left` on, and with those of the rows below, `len` behind
/// them, if there are more rows.
fn add(tiles: &Shaped, [rows, columns]: [usize; 2], left: &[u32], len: usize, right: &[Right]) {
    let (count, two) = (right.len(), rows > LANES);
    if count == 0 {
        return;
    }
    assert!(left.len() >= count * TILE + if two { len } else { 0 });
    let (left, right) = (left.as_ptr(), right.as_ptr().cast());
    let below = left.wrapping_add(len);
    // SAFETY: there are `count` tiles at all places, as was checked.
    unsafe {
        match (two, columns > LANES) {
            (true, true) => tiles.add_32_by_32(left, below, right, count),
            (true, false) => tiles.add_32_by_16(left, below, right, count),
            (false, _) => tiles.add_16_by_32(left, right, count),
        }
    }
}

/// The left side is packed as tiles, 16 rows at a time: zeros behind the last pair, and anything behind the last row.
impl Ordered for Unit {
    fn packed_len(rows: usize, pairs: usize) -> usize {
        rows.div_ceil(LANES) * pairs.div_ceil(LANES) * TILE
    }

    fn pack(self, lhs: Matrix<'_>, to: &mut [u32]) {
        let [rows, inner] = lhs.size();
        let len = Self::packed_len(LANES, inner.div_ceil(2));
        if len == 0 {
            return;
        }
        for (index, to) in to[..Self::packed_len(rows, inner.div_ceil(2))]
            .chunks_exact_mut(len)
            .enumerate()
        {
            let first = index * LANES;
            let rows = lhs.rows(first, LANES.min(rows - first));
            avx512::pack_tiles(self.0, rows, to);
        }
    }

    fn multiply_panel(
        self,
        dst: &mut MatrixMut<'_>,
        start: Start<'_>,
        packed: &[u32],
        right: &[u32],
        alpha: f32,
        added: Option<Added<'_>>,
    ) {
        let [rows, width] = dst.size();
        let (whole, rest) = right.as_chunks();
        let mut last = Last([0; LANES * COLUMNS]);
        last.0[..rest.len()].copy_from_slice(rest);
        let last = &slice::from_ref(&last.0)[..usize::from(!rest.is_empty())];
        let len = (whole.len() + last.len()) * TILE;
        // SAFETY: a unit was found.
        let tiles = unsafe { Shaped::new() };
        let mut sums = Sums([0.0; COLUMNS * COLUMNS]);
        for row in (0..rows).step_by(COLUMNS) {
            let count = COLUMNS.min(rows - row);
            let left = &packed[row / LANES * len..];
            tiles.clear();
            add(&tiles, [count, width], left, len, whole);
            add(
                &tiles,
                [count, width],
                &left[whole.len() * TILE..],
                len,
                last,
            );
            tiles.store(&mut sums.0);
            let mut tile = dst.row_block(row, count);
            let added = added.map(|added| added.rows(row));
            avx512::add_sums(self.0, &mut tile, start, &sums.0, alpha, added);
        }
    }
}

//! The kernel for AMX: `tdpbf16ps` multiplies a tile of 16 rows and 16 pairs by one of 16 pairs and 16 columns, 8,192
//! multiplications in 16 cycles.
//!
//! A panel of the right side is two tiles wide as it is. The left side is packed into tiles: 16 rows of 16 pairs, those of the
//! same rows one behind the other. Sums of 32 rows and 32 columns are in four tiles, which begin with what they are added to
//! and are stored where they belong. Those of fewer rows or columns take their way through memory of 4 KiB.
//!
//! Unsafe code: reads and writes at places that the callers' assertions have checked, and the instructions themselves,
//! which only a [`Unit`] that was found lets one call.

#![allow(unsafe_code)]

mod tiles;

use std::slice;

use tiles::{Shaped, TILE};

use super::{COLUMNS, LANES, Ordered, Start, avx512};
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

    /// What brings sides into order, and writes sums.
    pub(super) fn vectors(self) -> avx512::Unit {
        self.0
    }
}

/// Sums of up to 32 rows and columns, on their way to the output.
#[repr(align(64))]
struct Sums([f32; COLUMNS * COLUMNS]);

/// Elements of 16 pairs of 32 columns: two tiles of the right side.
const RIGHT: usize = LANES * COLUMNS;
type Right = [u32; RIGHT];

/// The last pairs of a panel, with zeros behind them.
#[repr(align(64))]
struct Last(Right);

/// Adds the products of a left side of up to 32 rows with up to 32 columns.
fn add(tiles: &Shaped, size: [usize; 2], left: &[u32], right: &[u32]) {
    let (whole, rest) = right.as_chunks();
    let len = right.len().div_ceil(RIGHT) * TILE;
    add_steps(tiles, size, left, len, whole);
    if !rest.is_empty() {
        let mut last = Last([0; RIGHT]);
        last.0[..rest.len()].copy_from_slice(rest);
        let left = &left[whole.len() * TILE..];
        add_steps(tiles, size, left, len, slice::from_ref(&last.0));
    }
}

/// Adds the products of the right side with tiles of 16 rows from `left` on, and with those of the rows below, `len` behind
/// them, if there are more rows.
fn add_steps(
    tiles: &Shaped,
    [rows, columns]: [usize; 2],
    left: &[u32],
    len: usize,
    right: &[Right],
) {
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
    type Ready = (Shaped, avx512::Unit);

    fn ready(self) -> Self::Ready {
        // SAFETY: a unit was found.
        (unsafe { Shaped::new() }, self.0)
    }

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

    fn row_tiles(rows: usize) -> impl Iterator<Item = (usize, usize)> {
        let tiles = (0..rows).step_by(COLUMNS);
        tiles.map(move |row| (row, COLUMNS.min(rows - row)))
    }

    fn tile_len(pairs: usize) -> usize {
        Self::packed_len(COLUMNS, pairs)
    }

    fn multiply_tile(
        (tiles, vectors): &Self::Ready,
        dst: &mut MatrixMut<'_>,
        start: Start<'_>,
        sides: [[&[u32]; 2]; 2],
        alpha: f32,
    ) {
        let size = dst.size();
        let add = || {
            for [left, right] in sides {
                add(tiles, size, left, right);
            }
        };
        #[expect(clippy::float_cmp, reason = "a number that the callers wrote")]
        if size == [COLUMNS; 2] && alpha == 1.0 {
            let (place, stride) = dst.parts();
            tiles.expect(place, stride);
            // SAFETY: 32 rows of 32 numbers, which are borrowed alone.
            unsafe {
                match start {
                    Start::Nothing => tiles.clear(),
                    Start::Row(row) => {
                        assert_eq!(row.len(), COLUMNS);
                        tiles.load(row.as_ptr(), 0);
                    }
                    Start::There => tiles.load(place, stride),
                }
                add();
                tiles.store(place, stride);
            }
            return;
        }
        let mut sums = Sums([0.0; COLUMNS * COLUMNS]);
        tiles.clear();
        add();
        // SAFETY: 32 rows of 32 numbers.
        unsafe { tiles.store(sums.0.as_mut_ptr(), COLUMNS) };
        avx512::add_sums(*vectors, dst, start, &sums.0, alpha);
    }
}

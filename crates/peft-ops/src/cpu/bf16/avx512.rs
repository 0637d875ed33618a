//! The kernel for AVX-512 with its bfloat16 extension: `vdpbf16ps` multiplies 32 pairs and adds them to 16 sums.
//!
//! Unsafe code: loads and stores at places that the callers' assertions have checked, and the instructions
//! themselves, which only a [`Unit`] that was found lets one call.

#![allow(unsafe_code)]

mod packing;

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, __mmask16, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps,
};

pub(super) use packing::{pack, pack_halves, pack_tiles, transpose};

use super::{COLUMNS, LANES, Ordered, ROWS, Start, row_panels};
use crate::cpu::matrix::{Matrix, MatrixMut};

/// Shows that the processor has the instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit(());

impl Unit {
    /// If this processor, and its operating system, have them.
    pub(super) fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        there.then_some(Self(()))
    }
}

/// The left side is packed as panels of up to 14 rows.
impl Ordered for Unit {
    type Ready = Self;

    fn ready(self) -> Self {
        self
    }

    fn packed_len(rows: usize, pairs: usize) -> usize {
        row_panels(rows).len() * pairs * LANES
    }

    fn pack(self, lhs: Matrix<'_>, to: &mut [u32]) {
        let [rows, inner] = lhs.size();
        let len = inner.div_ceil(2) * LANES;
        for (index, (row, count)) in row_panels(rows).enumerate() {
            pack(
                self,
                lhs.rows(row, count),
                &mut to[index * len..][..len],
                LANES,
            );
        }
    }

    fn row_tiles(rows: usize) -> impl Iterator<Item = (usize, usize)> {
        row_panels(rows)
    }

    fn tile_len(pairs: usize) -> usize {
        pairs * LANES
    }

    fn multiply_tile(
        _: &Self,
        dst: &mut MatrixMut<'_>,
        start: Start<'_>,
        sides: [[&[u32]; 2]; 2],
        alpha: f32,
    ) {
        let [rows, width] = dst.size();
        assert!(width <= COLUMNS);
        assert!(!matches!(start, Start::Row(row) if row.len() != width));
        for [left, right] in sides {
            assert_eq!(left.len() * COLUMNS, right.len() * LANES);
        }
        let (place, stride) = dst.parts();
        let to = To {
            place,
            stride,
            masks: [width, width.saturating_sub(LANES)].map(mask),
            start,
            alpha,
        };
        // SAFETY: the instructions are there, both sides hold equally many steps, and the tile is borrowed alone.
        unsafe { run_tile(rows, sides, to) };
    }
}

fn mask(lanes: usize) -> __mmask16 {
    if lanes >= LANES { !0 } else { (1 << lanes) - 1 }
}

/// Where a tile goes.
#[derive(Clone, Copy)]
struct To<'a> {
    place: *mut f32,
    stride: usize,
    masks: [__mmask16; 2],
    /// A row has a number for each lane that is not masked.
    start: Start<'a>,
    alpha: f32,
}

/// # Safety
///
/// The processor has the instructions, the left and the right one of both `sides` hold equally many steps, and the tile of
/// `rows` rows is valid for writes, and holds numbers if they are added to.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn run_tile(rows: usize, sides: [[&[u32]; 2]; 2], to: To<'_>) {
    macro_rules! tiles {
        ($($rows:literal)*) => {
            match (rows, to.masks[1] == 0) {
                $(
                    // SAFETY: as the caller says.
                    ($rows, false) => unsafe { tile::<$rows, 2>(sides, to) },
                    // SAFETY: as the caller says.
                    ($rows, true) => unsafe { tile::<$rows, 1>(sides, to) },
                )*
                _ => unreachable!("a panel has 1 to {ROWS} rows"),
            }
        };
    }
    tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// `M` rows of `V` vectors of columns: all sums stay in registers.
///
/// # Safety
///
/// As [`run_tile`], with `M` rows; lanes behind the first `V` vectors are masked.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn tile<const M: usize, const V: usize>(sides: [[&[u32]; 2]; 2], to: To<'_>) {
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    for [left, right] in sides {
        let steps = right.len() / COLUMNS;
        debug_assert_eq!(left.len(), steps * LANES);
        let (mut a, mut b) = (left.as_ptr(), right.as_ptr());
        for _ in 0..steps {
            // SAFETY: step by step within both slices.
            unsafe {
                let mut columns = [half(_mm512_set1_epi32(0)); V];
                for (vector, columns) in columns.iter_mut().enumerate() {
                    *columns = half(_mm512_loadu_si512(b.add(vector * LANES).cast()));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let pair = half(_mm512_set1_epi32(a.add(row).read().cast_signed()));
                    for (sum, columns) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_dpbf16_ps(*sum, pair, columns);
                    }
                }
                a = a.add(LANES);
                b = b.add(COLUMNS);
            }
        }
    }
    // SAFETY: as the caller says.
    unsafe { finish(sums, to) };
}

/// Writes the sums of a tile.
///
/// # Safety
///
/// As [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn finish<const M: usize, const V: usize>(sums: [[__m512; V]; M], to: To<'_>) {
    let alpha = _mm512_set1_ps(to.alpha);
    for (row, sums) in sums.into_iter().enumerate() {
        for (vector, sum) in sums.into_iter().enumerate() {
            let (mask, at) = (to.masks[vector], vector * LANES);
            // SAFETY: rows and columns of the tile; masked lanes are not touched.
            unsafe {
                let place = to.place.add(row * to.stride + at);
                let before = match to.start {
                    Start::Nothing => _mm512_setzero_ps(),
                    Start::Row(row) => _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(at)),
                    Start::There => _mm512_maskz_loadu_ps(mask, place),
                };
                let value = _mm512_fmadd_ps(sum, alpha, before);
                _mm512_mask_storeu_ps(place, mask, value);
            }
        }
    }
}

/// `dst = start + alpha·sums`, of up to 32 rows and columns; rows of sums are 32 numbers.
pub(super) fn add_sums(
    _: Unit,
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    sums: &[f32; COLUMNS * COLUMNS],
    alpha: f32,
) {
    /// Rows whose sums are in registers at a time.
    const M: usize = 8;
    let [rows, columns] = dst.size();
    assert!(rows <= COLUMNS && columns <= COLUMNS);
    assert!(!matches!(start, Start::Row(row) if row.len() != columns));
    let masks = [columns, columns.saturating_sub(LANES)].map(mask);
    for first in (0..rows).step_by(M) {
        let count = M.min(rows - first);
        let mut tile = dst.row_block(first, count);
        let (place, stride) = tile.parts();
        let to = To {
            place,
            stride,
            masks,
            start,
            alpha,
        };
        let sums = &sums[first * COLUMNS..(first + count) * COLUMNS];
        // SAFETY: the instructions are there; the rows are borrowed alone.
        unsafe {
            if count == M {
                finish(load::<M>(sums), to);
            } else {
                finish_rows(sums, to);
            }
        }
    }
}

/// [`finish`] of rows, one by one.
///
/// # Safety
///
/// As [`finish`], of as many rows as there are sums of.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn finish_rows(sums: &[f32], to: To<'_>) {
    for (row, sums) in sums.chunks_exact(COLUMNS).enumerate() {
        let to = To {
            place: to.place.wrapping_add(row * to.stride),
            ..to
        };
        // SAFETY: as the caller says.
        unsafe { finish(load::<1>(sums), to) };
    }
}

/// Rows of 32 sums.
#[target_feature(enable = "avx512f")]
#[inline]
fn load<const M: usize>(sums: &[f32]) -> [[__m512; 2]; M] {
    assert!(sums.len() >= M * COLUMNS);
    std::array::from_fn(|row| {
        // SAFETY: the slice has two vectors for each row.
        [0, 1].map(|vector| unsafe {
            _mm512_loadu_ps(sums.as_ptr().add(row * COLUMNS + vector * LANES))
        })
    })
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn half(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without meaning of their own.
    unsafe { std::mem::transmute(bits) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn bits(halves: __m512bh) -> __m512i {
    // SAFETY: as above.
    unsafe { std::mem::transmute(halves) }
}

//! The kernel for AVX-512 with its bfloat16 extension: `vdpbf16ps` multiplies 32 pairs and adds them to 16 sums.
//!
//! Unsafe code: loads and stores at places that the callers' assertions have checked, and the instructions
//! themselves, which only a [`Unit`] that was found lets one call.

#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, __mmask16, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_permutex2var_epi64,
    _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi64,
    _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::{COLUMNS, LANES, Panels, ROWS, Start, row_panels};
use crate::cpu::matrix::{Matrix, MatrixMut};

/// Shows that the processor has the instructions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit(());

impl Unit {
    /// If this processor, and its operating system, have them.
    pub(super) fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        there.then_some(Self(()))
    }
}

/// `dst = start + alpha·lhs·rhs`, for `pairs` pairs from `first` on; `packed` is the left side's panels.
pub(super) fn multiply(
    _: Unit,
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    packed: &[u32],
    rhs: Panels<'_>,
    [first, pairs]: [usize; 2],
    alpha: f32,
) {
    let [rows, columns] = dst.size();
    assert!(columns <= rhs.columns && first + pairs <= rhs.pairs());
    assert!(!matches!(start, Start::Row(row) if row.len() != columns));
    assert!(packed.len() >= row_panels(rows).len() * pairs * LANES);
    for panel in 0..columns.div_ceil(COLUMNS) {
        let right = &rhs.panel(panel)[first * COLUMNS..(first + pairs) * COLUMNS];
        let from = panel * COLUMNS;
        let width = COLUMNS.min(columns - from);
        let mut dst = dst.column_block(from, width);
        let start = start.columns(from, width);
        for (index, (row, count)) in row_panels(rows).enumerate() {
            let left = &packed[index * pairs * LANES..(index + 1) * pairs * LANES];
            let mut tile = dst.row_block(row, count);
            let (place, stride) = tile.parts();
            let to = To {
                place,
                stride,
                masks: [width, width.saturating_sub(LANES)].map(mask),
                start,
                alpha,
            };
            // SAFETY: the instructions are there, both sides hold `pairs` steps, and the tile is borrowed alone.
            unsafe { run_tile(count, left, right, to) };
        }
    }
}

/// Packs up to 16 rows of `rows` as pairs along their length: the pair `p` of row `i` to `to[p·stride + i]`,
/// zeros behind the last row and behind an odd length.
pub(super) fn pack(_: Unit, rows: Matrix<'_>, to: &mut [u32], stride: usize) {
    let [count, len] = rows.size();
    let pairs = len.div_ceil(2);
    assert!(count <= LANES && stride >= LANES);
    assert!(pairs == 0 || to.len() >= (pairs - 1) * stride + LANES);
    let (data, strides) = rows.parts();
    match strides {
        // SAFETY: the instructions are there; a `Matrix` lies in its slice, and `to` was checked above.
        [row, 1] => unsafe {
            pack_along(data.as_ptr(), [count, len], row, to.as_mut_ptr(), stride);
        },
        // SAFETY: as above.
        [1, step] => unsafe {
            pack_across(data.as_ptr(), [count, len], step, to.as_mut_ptr(), stride);
        },
        _ => super::portable::pack(rows, to, stride),
    }
}

/// 32 columns of the transposed matrix, from the pairs `first..first + 16` of all columns of `from`: the
/// panel of their columns `2·first..`, a pair of columns of `from` in each step.
pub(super) fn transpose(_: Unit, from: Panels<'_>, first: usize, to: &mut [u32]) {
    let steps = from.columns.div_ceil(2);
    assert!(to.len() >= steps * COLUMNS);
    let whole = first + LANES <= from.pairs();
    if !whole {
        return super::portable::transpose(from, first, to);
    }
    for panel in 0..from.columns.div_ceil(COLUMNS) {
        let source = &from.panel(panel)[first * COLUMNS..(first + LANES) * COLUMNS];
        for half in 0..2 {
            let done = panel * COLUMNS / 2 + half * LANES / 2;
            let count = (LANES / 2).min(steps.saturating_sub(done));
            for part in 0..2 {
                let source = &source[part * LANES / 2 * COLUMNS + half * LANES..];
                let to = &mut to[(done * COLUMNS + part * LANES).min(steps * COLUMNS)..];
                assert!(source.len() >= (LANES / 2 - 1) * COLUMNS + LANES);
                assert!(count == 0 || to.len() >= (count - 1) * COLUMNS + LANES);
                // SAFETY: the instructions are there, and both lengths were checked.
                unsafe { transpose_block(source.as_ptr(), to.as_mut_ptr(), count) };
            }
        }
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
/// The processor has the instructions, `left` and `right` hold equally many steps, and the tile of `rows` rows is valid
/// for writes, and holds numbers if they are added to.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn run_tile(rows: usize, left: &[u32], right: &[u32], to: To<'_>) {
    // SAFETY: as the caller says.
    unsafe {
        match rows {
            1 => tile::<1>(left, right, to),
            2 => tile::<2>(left, right, to),
            3 => tile::<3>(left, right, to),
            4 => tile::<4>(left, right, to),
            5 => tile::<5>(left, right, to),
            6 => tile::<6>(left, right, to),
            7 => tile::<7>(left, right, to),
            8 => tile::<8>(left, right, to),
            9 => tile::<9>(left, right, to),
            10 => tile::<10>(left, right, to),
            11 => tile::<11>(left, right, to),
            12 => tile::<12>(left, right, to),
            13 => tile::<13>(left, right, to),
            ROWS => tile::<ROWS>(left, right, to),
            _ => unreachable!("a panel has 1 to {ROWS} rows"),
        }
    }
}

/// `M` rows of 32 columns: all sums stay in registers.
///
/// # Safety
///
/// As [`run_tile`], with `M` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn tile<const M: usize>(left: &[u32], right: &[u32], to: To<'_>) {
    let steps = right.len() / COLUMNS;
    debug_assert_eq!(left.len(), steps * LANES);
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    let (mut a, mut b) = (left.as_ptr(), right.as_ptr());
    for _ in 0..steps {
        // SAFETY: step by step within both slices.
        unsafe {
            let columns = [0, LANES].map(|at| half(_mm512_loadu_si512(b.add(at).cast())));
            for (row, sums) in sums.iter_mut().enumerate() {
                let pair = half(_mm512_set1_epi32(a.add(row).read().cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], pair, columns[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], pair, columns[1]);
            }
            a = a.add(LANES);
            b = b.add(COLUMNS);
        }
    }
    let alpha = _mm512_set1_ps(to.alpha);
    for (row, sums) in sums.into_iter().enumerate() {
        for ((sum, mask), at) in sums.into_iter().zip(to.masks).zip([0, LANES]) {
            if mask == 0 {
                continue;
            }
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

/// Rows that are contiguous along their pairs.
///
/// # Safety
///
/// The processor has the instructions; `from` has `count` rows of `len` numbers, `row` apart; `to` takes 16 pairs
/// every `stride`, once for each two numbers of a row.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_along(
    from: *const f32,
    [count, len]: [usize; 2],
    row: usize,
    to: *mut u32,
    stride: usize,
) {
    let mut first = 0;
    while first < len {
        let left = len - first;
        let masks = [mask(left), mask(left.saturating_sub(LANES))];
        let mut block = [bits(half(_mm512_set1_epi32(0))); LANES];
        for (index, block) in block.iter_mut().enumerate().take(count) {
            // SAFETY: masked lanes, behind the row's end, are not read.
            unsafe {
                let at = from.add(index * row + first);
                let low = _mm512_maskz_loadu_ps(masks[0], at);
                let high = _mm512_maskz_loadu_ps(masks[1], at.wrapping_add(LANES));
                *block = bits(_mm512_cvtne2ps_pbh(high, low));
            }
        }
        let block = transpose_16(&block);
        let pairs = left.div_ceil(2).min(LANES);
        for (index, pair) in block.into_iter().enumerate().take(pairs) {
            // SAFETY: the pair has its place in `to`.
            unsafe { _mm512_storeu_si512(to.add((first / 2 + index) * stride).cast(), pair) };
        }
        first += 2 * LANES;
    }
}

/// Rows whose neighbours are contiguous: columns of a row-major matrix.
///
/// # Safety
///
/// As [`pack_along`], but the numbers of a row are `step` apart, and rows 1.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_across(
    from: *const f32,
    [count, len]: [usize; 2],
    step: usize,
    to: *mut u32,
    stride: usize,
) {
    const INTERLEAVE: [u16; 32] = {
        let mut order = [0; 32];
        let mut index = 0;
        while index < 32 {
            order[index] = (index / 2 + index % 2 * 16) as u16;
            index += 1;
        }
        order
    };
    let mask = mask(count);
    // SAFETY: 64 bytes.
    let order = unsafe { _mm512_loadu_si512(INTERLEAVE.as_ptr().cast()) };
    for pair in 0..len.div_ceil(2) {
        // SAFETY: two rows of the transposed, of which the second may be missing; one place in `to`.
        unsafe {
            let at = from.add(2 * pair * step);
            let low = _mm512_maskz_loadu_ps(mask, at);
            let high = if 2 * pair + 1 < len {
                _mm512_maskz_loadu_ps(mask, at.add(step))
            } else {
                _mm512_setzero_ps()
            };
            let both = bits(_mm512_cvtne2ps_pbh(high, low));
            let both = _mm512_permutexvar_epi16(order, both);
            _mm512_storeu_si512(to.add(pair * stride).cast(), both);
        }
    }
}

/// The transposed of a square of 32-bit elements.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_16(rows: &[__m512i; LANES]) -> [__m512i; LANES] {
    // Within quarters: squares of 4.
    let mut quarters = *rows;
    for group in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|index| rows[4 * group + index]);
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        quarters[4 * group] = _mm512_unpacklo_epi64(ab, cd);
        quarters[4 * group + 1] = _mm512_unpackhi_epi64(ab, cd);
        quarters[4 * group + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        quarters[4 * group + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    // Then the quarters themselves.
    let mut out = *rows;
    for index in 0..4 {
        let [a, b, c, d] =
            [0, 1, 2, 3].map(|group| _mm512_castsi512_ps(quarters[4 * group + index]));
        let (ab, cd) = (even_quarters(a, b), even_quarters(c, d));
        let (ab_odd, cd_odd) = (odd_quarters(a, b), odd_quarters(c, d));
        out[index] = _mm512_castps_si512(even_quarters(ab, cd));
        out[index + 4] = _mm512_castps_si512(even_quarters(ab_odd, cd_odd));
        out[index + 8] = _mm512_castps_si512(odd_quarters(ab, cd));
        out[index + 12] = _mm512_castps_si512(odd_quarters(ab_odd, cd_odd));
    }
    out
}

#[target_feature(enable = "avx512f")]
#[inline]
fn even_quarters(a: __m512, b: __m512) -> __m512 {
    _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn odd_quarters(a: __m512, b: __m512) -> __m512 {
    _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b)
}

/// 8 steps of 8 pairs of columns, to `count` pairs of columns of 8 pairs of steps.
///
/// # Safety
///
/// The processor has the instructions; `from` has 8 steps and `to` `count`, of 16 pairs, [`COLUMNS`] apart.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn transpose_block(from: *const u32, to: *mut u32, count: usize) {
    /// Of four halves, the inner two change places.
    const INNER: [u16; 32] = {
        let mut order = [0; 32];
        let mut index = 0;
        while index < 32 {
            let place = index % 4;
            let other = if place == 1 {
                2
            } else if place == 2 {
                1
            } else {
                place
            };
            order[index] = (index - place + other) as u16;
            index += 1;
        }
        order
    };
    // SAFETY: 64 bytes, and the 8 steps of `from`.
    let rows = unsafe {
        let order = _mm512_loadu_si512(INNER.as_ptr().cast());
        [0, 1, 2, 3, 4, 5, 6, 7].map(|step| {
            let row = _mm512_loadu_ps(from.add(step * COLUMNS).cast());
            _mm512_permutexvar_epi16(order, _mm512_castps_si512(row))
        })
    };
    let columns = transpose_8(&rows);
    for (index, column) in columns.into_iter().enumerate().take(count) {
        // SAFETY: as the caller says.
        unsafe { _mm512_storeu_si512(to.add(index * COLUMNS).cast(), column) };
    }
}

/// The transposed of a square of 64-bit elements.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_8(rows: &[__m512i; 8]) -> [__m512i; 8] {
    let low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    let high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    let first = _mm512_setr_epi64(0, 1, 2, 3, 8, 9, 10, 11);
    let second = _mm512_setr_epi64(4, 5, 6, 7, 12, 13, 14, 15);
    let mut pairs = *rows;
    for index in 0..4 {
        let (a, b) = (rows[2 * index], rows[2 * index + 1]);
        pairs[index] = _mm512_unpacklo_epi64(a, b);
        pairs[index + 4] = _mm512_unpackhi_epi64(a, b);
    }
    let mut out = *rows;
    // `pairs[0..4]` has the even columns of two rows each, `pairs[4..8]` the odd ones.
    for odd in 0..2 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|index| pairs[4 * odd + index]);
        let (ab, cd) = (
            _mm512_permutex2var_epi64(a, low, b),
            _mm512_permutex2var_epi64(c, low, d),
        );
        let (ab_high, cd_high) = (
            _mm512_permutex2var_epi64(a, high, b),
            _mm512_permutex2var_epi64(c, high, d),
        );
        out[odd] = _mm512_permutex2var_epi64(ab, first, cd);
        out[odd + 2] = _mm512_permutex2var_epi64(ab_high, first, cd_high);
        out[odd + 4] = _mm512_permutex2var_epi64(ab, second, cd);
        out[odd + 6] = _mm512_permutex2var_epi64(ab_high, second, cd_high);
    }
    out
}

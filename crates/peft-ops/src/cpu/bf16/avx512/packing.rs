//! Both sides of products, brought into the order of the kernel: rounded, and turned in squares of 16.
//!
//! Unsafe code: loads and stores at places that were checked before, and the instructions themselves.

#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512, __m512i, __mmask32, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_castsi512_si256,
    _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_permutex2var_epi64,
    _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_setr_epi64, _mm512_setzero_ps,
    _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::{Unit, bits, half, mask};
use crate::cpu::bf16::{COLUMNS, LANES, Panels, portable};
use crate::cpu::matrix::Matrix;

/// Packs up to 16 rows of `rows` as pairs along their length: the pair `p` of row `i` to `to[p·stride + i]`,
/// zeros behind the last row and behind an odd length.
pub(in crate::cpu::bf16) fn pack(_: Unit, rows: Matrix<'_>, to: &mut [u32], stride: usize) {
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
        _ => portable::pack(rows, to, stride, portable::round),
    }
}

/// Packs up to 16 rows as tiles of 16 rows and 16 pairs, one behind the other: zeros behind the last pair. What is behind
/// the last row may be anything.
pub(in crate::cpu::bf16) fn pack_tiles(unit: Unit, rows: Matrix<'_>, to: &mut [u32]) {
    let [count, len] = rows.size();
    let (data, strides) = rows.parts();
    assert!(count <= LANES && to.len() >= len.div_ceil(2).div_ceil(LANES) * LANES * LANES);
    if let [row, 1] = strides {
        for index in 0..count {
            let from = &data[index * row..][..len];
            let to = &mut to[index * LANES..];
            // SAFETY: the instructions are there; the row begins a row of each tile, and all of them are in `to`.
            unsafe { round_row(from, to.as_mut_ptr(), LANES * LANES) };
        }
        return;
    }
    for (first, to) in (0..len)
        .step_by(2 * LANES)
        .zip(to.chunks_exact_mut(LANES * LANES))
    {
        let part = rows.columns(first, (2 * LANES).min(len - first));
        let pairs = part.size()[1].div_ceil(2);
        pack(unit, part, to, LANES);
        to[pairs * LANES..].fill(0);
        // SAFETY: the instructions are there, and the slice has 16 vectors.
        unsafe { turn(to) };
    }
}

/// Rounds a row of numbers: 32 at a time, to places that are `apart`, zeros behind the last.
///
/// # Safety
///
/// The processor has the instructions; `to` takes 16 elements at each place.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn round_row(from: &[f32], to: *mut u32, apart: usize) {
    for (index, part) in from.chunks(2 * LANES).enumerate() {
        let masks = [part.len(), part.len().saturating_sub(LANES)].map(mask);
        // SAFETY: what is not masked lies in the part; 16 elements are written to a place for them.
        unsafe {
            let low = _mm512_maskz_loadu_ps(masks[0], part.as_ptr());
            let high = _mm512_maskz_loadu_ps(masks[1], part.as_ptr().wrapping_add(LANES));
            let rounded = bits(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.add(index * apart).cast(), rounded);
        }
    }
}

/// Transposes a square of 16.
///
/// # Safety
///
/// The processor has the instructions.
#[target_feature(enable = "avx512f")]
unsafe fn turn(square: &mut [u32]) {
    assert_eq!(square.len(), LANES * LANES);
    let at = square.as_mut_ptr();
    // SAFETY: 16 vectors of 16 elements.
    unsafe {
        let rows = std::array::from_fn(|row| _mm512_loadu_si512(at.add(row * LANES).cast()));
        for (row, vector) in transpose_16(&rows).into_iter().enumerate() {
            _mm512_storeu_si512(at.add(row * LANES).cast(), vector);
        }
    }
}

/// [`pack`] of numbers in bfloat16.
pub(in crate::cpu::bf16) fn pack_halves(
    _: Unit,
    rows: Matrix<'_, u16>,
    to: &mut [u32],
    stride: usize,
) {
    let [count, len] = rows.size();
    let pairs = len.div_ceil(2);
    assert!(count <= LANES && stride >= LANES);
    assert!(pairs == 0 || to.len() >= (pairs - 1) * stride + LANES);
    let (data, strides) = rows.parts();
    match strides {
        // SAFETY: the instructions are there; a `Matrix` lies in its slice, and `to` was checked above.
        [row, 1] => unsafe {
            pack_halves_along(data.as_ptr(), [count, len], row, to.as_mut_ptr(), stride);
        },
        // SAFETY: as above.
        [1, step] => unsafe {
            pack_halves_across(data.as_ptr(), [count, len], step, to.as_mut_ptr(), stride);
        },
        _ => portable::pack(rows, to, stride, u32::from),
    }
}

/// 32 columns of the transposed matrix, from the pairs `first..first + 16` of all columns of `from`: the
/// panel of their columns `2·first..`, a pair of columns of `from` in each step.
pub(in crate::cpu::bf16) fn transpose(_: Unit, from: Panels<'_>, first: usize, to: &mut [u32]) {
    let steps = from.columns.div_ceil(2);
    assert!(to.len() >= steps * COLUMNS);
    let whole = first + LANES <= from.pairs();
    if !whole {
        return portable::transpose(from, first, to);
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

/// Of the 32 elements of a vector of halves.
fn mask_of_halves(elements: usize) -> __mmask32 {
    if elements >= 2 * LANES {
        !0
    } else {
        (1 << elements) - 1
    }
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
        // SAFETY: the pairs have their places in `to`.
        unsafe { store_transposed(&block, left, to.add(first / 2 * stride), stride) };
        first += 2 * LANES;
    }
}

/// Writes the pairs of the `left` numbers that 16 rows have from here on, at most 32, one pair of all rows after the other.
///
/// # Safety
///
/// The pairs have their places in `to`, `stride` apart; the processor has the units.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn store_transposed(block: &[__m512i; LANES], left: usize, to: *mut u32, stride: usize) {
    let block = transpose_16(block);
    let pairs = left.div_ceil(2).min(LANES);
    for (index, pair) in block.into_iter().enumerate().take(pairs) {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_si512(to.add(index * stride).cast(), pair) };
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

/// Rows in bfloat16 that are contiguous along their pairs.
///
/// # Safety
///
/// As [`pack_along`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_halves_along(
    from: *const u16,
    [count, len]: [usize; 2],
    row: usize,
    to: *mut u32,
    stride: usize,
) {
    let mut first = 0;
    while first < len {
        let left = len - first;
        let mut block = [_mm512_set1_epi32(0); LANES];
        for (index, block) in block.iter_mut().enumerate().take(count) {
            // SAFETY: masked lanes, behind the row's end, are not read.
            unsafe {
                let at = from.add(index * row + first);
                *block = _mm512_maskz_loadu_epi16(mask_of_halves(left), at.cast());
            }
        }
        // SAFETY: the pairs have their places in `to`.
        unsafe { store_transposed(&block, left, to.add(first / 2 * stride), stride) };
        first += 2 * LANES;
    }
}

/// Rows in bfloat16 whose neighbours are contiguous.
///
/// # Safety
///
/// As [`pack_across`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_halves_across(
    from: *const u16,
    [count, len]: [usize; 2],
    step: usize,
    to: *mut u32,
    stride: usize,
) {
    let mask = mask_of_halves(count);
    for pair in 0..len.div_ceil(2) {
        // SAFETY: two rows of the transposed, of which the second may be missing; one place in `to`.
        unsafe {
            let at = from.add(2 * pair * step);
            let widened = |at: *const u16| {
                let halves = _mm512_maskz_loadu_epi16(mask, at.cast());
                _mm512_cvtepu16_epi32(_mm512_castsi512_si256(halves))
            };
            let low = widened(at);
            let high = if 2 * pair + 1 < len {
                _mm512_slli_epi32::<16>(widened(at.add(step)))
            } else {
                _mm512_set1_epi32(0)
            };
            _mm512_storeu_si512(to.add(pair * stride).cast(), _mm512_or_si512(low, high));
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

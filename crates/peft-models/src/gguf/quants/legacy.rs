//! Blocks of 32 values: an f16 scale `d`, in the `_1` types an f16 minimum `m`, then codes.
//!
//! A byte of codes holds a value of the first half of the block in its low four bits, and one of
//! the second half in its high four.

use super::half;

/// `d * (code - 8)`.
pub(super) fn q4_0(bytes: &[u8], values: &mut Vec<f32>) {
    for block in bytes.as_chunks::<18>().0 {
        let d = half(block, 0);
        let codes = &block[2..];
        let value = |code: u8| (f32::from(code) - 8.0) * d;
        values.extend(codes.iter().map(|code| value(code & 15)));
        values.extend(codes.iter().map(|code| value(code >> 4)));
    }
}

/// `d * code + m`.
pub(super) fn q4_1(bytes: &[u8], values: &mut Vec<f32>) {
    for block in bytes.as_chunks::<20>().0 {
        let (d, m) = (half(block, 0), half(block, 2));
        let codes = &block[4..];
        let value = |code: u8| f32::from(code) * d + m;
        values.extend(codes.iter().map(|code| value(code & 15)));
        values.extend(codes.iter().map(|code| value(code >> 4)));
    }
}

/// `d * (code - 16)`.
pub(super) fn q5_0(bytes: &[u8], values: &mut Vec<f32>) {
    for block in bytes.as_chunks::<22>().0 {
        let d = half(block, 0);
        let value = |code: u8| (f32::from(code) - 16.0) * d;
        values.extend(five_bits(&block[2..6], &block[6..]).map(value));
    }
}

/// `d * code + m`.
pub(super) fn q5_1(bytes: &[u8], values: &mut Vec<f32>) {
    for block in bytes.as_chunks::<24>().0 {
        let (d, m) = (half(block, 0), half(block, 2));
        let value = |code: u8| f32::from(code) * d + m;
        values.extend(five_bits(&block[4..8], &block[8..]).map(value));
    }
}

/// `d * code`, where codes are signed bytes.
pub(super) fn q8_0(bytes: &[u8], values: &mut Vec<f32>) {
    for block in bytes.as_chunks::<34>().0 {
        let d = half(block, 0);
        let codes = block[2..].iter();
        values.extend(codes.map(|code| f32::from(*code as i8) * d));
    }
}

/// The 32 codes of a block, whose fifth bits lie apart: that of value `i` is bit `i` of `high`.
fn five_bits(high: &[u8], low: &[u8]) -> impl Iterator<Item = u8> {
    let fifth = move |value: usize| ((high[value / 8] >> (value % 8)) & 1) << 4;
    let first = low.iter().map(|codes| codes & 15);
    let second = low.iter().map(|codes| codes >> 4);
    first
        .chain(second)
        .enumerate()
        .map(move |(value, code)| code | fifth(value))
}

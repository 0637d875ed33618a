//! Blocks of 256 values in groups of 16 or 32, each with its own scale: the K-quants.
//!
//! Scales of groups are small whole numbers, multiplied by the block's f16 scale `d`; minima of
//! groups likewise by its `dmin`.

use super::half;

/// 16 groups of 16 two-bit codes: `d * scale * code - dmin * minimum`.
pub(super) fn q2_k(bytes: &[u8], values: &mut Vec<f32>) {
    for block in bytes.as_chunks::<84>().0 {
        let (scales, codes) = (&block[..16], &block[16..80]);
        let (d, dmin) = (half(block, 80), half(block, 82));
        for (group, scale) in scales.iter().enumerate() {
            let step = d * f32::from(scale & 15);
            let minimum = dmin * f32::from(scale >> 4);
            let codes = two_bits(codes, group);
            values.extend(codes.map(|code| step * f32::from(code) - minimum));
        }
    }
}

/// 16 groups of 16 three-bit codes, whose third bits lie apart: `d * (scale - 32) * (code - 4)`.
pub(super) fn q3_k(bytes: &[u8], values: &mut Vec<f32>) {
    for block in bytes.as_chunks::<110>().0 {
        let (third, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
        let d = half(block, 108);
        for group in 0..16 {
            // Four bits of a scale lie in the first eight bytes, two in the last four.
            let low = (scales[group % 8] >> (group / 8 * 4)) & 15;
            let high = (scales[8 + group % 4] >> (group / 4 * 2)) & 3;
            let step = d * (f32::from(low | (high << 4)) - 32.0);
            let third = third[group % 2 * 16..].iter();
            let codes = two_bits(codes, group).zip(third).map(|(code, third)| {
                let third = (third >> (group / 2)) & 1;
                step * (f32::from(code | (third << 2)) - 4.0)
            });
            values.extend(codes);
        }
    }
}

/// 8 groups of 32 four-bit codes: `d * scale * code - dmin * minimum`.
pub(super) fn q4_k(bytes: &[u8], values: &mut Vec<f32>) {
    for block in bytes.as_chunks::<144>().0 {
        let (d, dmin) = (half(block, 0), half(block, 2));
        let (scales, codes) = (&block[4..16], &block[16..]);
        for group in 0..8 {
            let (scale, minimum) = scale_and_minimum(scales, group);
            let (step, minimum) = (d * scale, dmin * minimum);
            let codes = four_bits(codes, group);
            values.extend(codes.map(|code| step * f32::from(code) - minimum));
        }
    }
}

/// 8 groups of 32 five-bit codes, whose fifth bits lie apart: `d * scale * code - dmin * minimum`.
pub(super) fn q5_k(bytes: &[u8], values: &mut Vec<f32>) {
    for block in bytes.as_chunks::<176>().0 {
        let (d, dmin) = (half(block, 0), half(block, 2));
        let (scales, fifth, codes) = (&block[4..16], &block[16..48], &block[48..]);
        for group in 0..8 {
            let (scale, minimum) = scale_and_minimum(scales, group);
            let (step, minimum) = (d * scale, dmin * minimum);
            let codes = four_bits(codes, group).zip(fifth).map(|(code, fifth)| {
                let fifth = (fifth >> group) & 1;
                step * f32::from(code | (fifth << 4)) - minimum
            });
            values.extend(codes);
        }
    }
}

/// 16 groups of 16 six-bit codes: `d * scale * (code - 32)`, where scales are signed bytes.
pub(super) fn q6_k(bytes: &[u8], values: &mut Vec<f32>) {
    for block in bytes.as_chunks::<210>().0 {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        let d = half(block, 208);
        for (group, scale) in scales.iter().enumerate() {
            let step = d * f32::from(*scale as i8);
            // Each half of the block has four quarters of two groups. The low bits of the first
            // quarter share their bytes with those of the third, of the second with the fourth;
            // the high bits of all four share theirs.
            let (part, quarter, odd) = (group / 8, group % 8 / 2, group % 2 * 16);
            let low = low[part * 64 + quarter % 2 * 32 + odd..].iter().take(16);
            let high = high[part * 32 + odd..].iter();
            let codes = low.zip(high).map(|(low, high)| {
                let low = (low >> (quarter / 2 * 4)) & 15;
                let high = (high >> (quarter * 2)) & 3;
                step * (f32::from(low | (high << 4)) - 32.0)
            });
            values.extend(codes);
        }
    }
}

/// The 16 two-bit codes of a group. Each half of the block lies in 32 bytes, whose lowest two bits
/// are its first two groups, the next two bits the next two groups, and so on.
fn two_bits(codes: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let codes = codes[group / 8 * 32 + group % 2 * 16..].iter().take(16);
    codes.map(move |code| (code >> (group % 8 / 2 * 2)) & 3)
}

/// The 32 four-bit codes of a group. Two groups share 32 bytes, the first has the low bits.
fn four_bits(codes: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let codes = codes[group / 2 * 32..].iter().take(32);
    codes.map(move |code| (code >> (group % 2 * 4)) & 15)
}

/// The six-bit scale and minimum of a group. Those of the first four groups are the low bits of
/// bytes 0 to 7; those of the last four have their low bits in bytes 8 to 11, and what is left in
/// the two high bits of bytes 0 to 7.
fn scale_and_minimum(quantized: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (quantized[group] & 63, quantized[group + 4] & 63)
    } else {
        let low = quantized[group + 4];
        let (scale, minimum) = (quantized[group - 4] >> 6, quantized[group] >> 6);
        ((low & 15) | (scale << 4), (low >> 4) | (minimum << 4))
    };
    (f32::from(scale), f32::from(minimum))
}

//! 4-bit codes into a table whose values are not evenly spaced.

use super::half;

/// What the codes mean: `kvalues_iq4nl`.
const TABLE: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Values of a part of a block.
const PART: usize = 32;

/// Appends the values of 16 bytes: those of the low halves, then those of the high ones.
fn push(codes: &[u8], scale: f32, values: &mut Vec<f32>) {
    let value = |code: u8| scale * f32::from(TABLE[usize::from(code)]);
    values.extend(codes.iter().map(|byte| value(byte & 15)));
    values.extend(codes.iter().map(|byte| value(byte >> 4)));
}

/// A scale, and codes.
pub(super) fn iq4_nl(blocks: &[u8], values: &mut Vec<f32>) {
    for block in blocks.chunks_exact(18) {
        push(&block[2..], half(block, 0), values);
    }
}

/// A scale; scales of eight parts in 6 bits, 32 being none: two bits of each, then four of each; and codes.
pub(super) fn iq4_xs(blocks: &[u8], values: &mut Vec<f32>) {
    for block in blocks.chunks_exact(136) {
        let scale = half(block, 0);
        let high = u16::from_le_bytes([block[2], block[3]]);
        for (part, codes) in block[8..].chunks_exact(PART / 2).enumerate() {
            let low = block[4 + part / 2] >> (4 * (part % 2)) & 15;
            let high = (high >> (2 * part) & 3) as u8;
            let own = f32::from(low | high << 4) - 32.0;
            push(codes, scale * own, values);
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "all are exact")]
mod tests {
    use super::*;

    /// 16 bytes with every code once in the low and once in the high halves.
    fn codes() -> [u8; 16] {
        std::array::from_fn(|code| code as u8 | (15 - code as u8) << 4)
    }

    #[test]
    fn codes_are_places_in_the_table() {
        // -0.5 in f16.
        let block = [[0x00, 0xb8].as_slice(), &codes()].concat();
        let mut values = Vec::new();
        iq4_nl(&[block.clone(), block].concat(), &mut values);
        assert_eq!(values.len(), 64);
        assert_eq!(values[..32], values[32..]);
        assert_eq!(values[..4], [63.5, 52.0, 41.5, 32.5]);
        assert_eq!(values[7..9], [5.0, -0.5]);
        assert_eq!(values[15..18], [-56.5, -56.5, -44.5]);
        assert_eq!(values[31], 63.5);
    }

    #[test]
    fn scales_of_parts_have_six_bits() {
        // 0.25; high bits 3, 2, 1, 0, 3, 2, 1, 0; low bits 15, 0, 1, 2, 3, 4, 5, 6.
        let high = 0b00_01_10_11_00_01_10_11_u16.to_le_bytes();
        let mut block = vec![0x00, 0x34, high[0], high[1], 0x0f, 0x21, 0x43, 0x65];
        for _ in 0..8 {
            block.extend(codes());
        }
        let mut values = Vec::new();
        iq4_xs(&block, &mut values);
        assert_eq!(values.len(), 256);
        let scales = [31.0, 0.0, -15.0, -30.0, 19.0, 4.0, -11.0, -26.0];
        for (part, scale) in values.chunks_exact(32).zip(scales) {
            assert_eq!(part[0], 0.25 * scale * -127.0);
            assert_eq!(part[15], 0.25 * scale * 113.0);
            assert_eq!(part[17], 0.25 * scale * 89.0);
        }
    }
}

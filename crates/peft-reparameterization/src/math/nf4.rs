//! NormalFloat, four bits: which values are left of a weight that is quantized to it.

/// The 16 values of a code, in [-1, 1]: quantiles of the normal distribution, zero among them (Dettmers et al. 2023,
/// QLoRA, section 3).
pub const NF4_VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Elements that share a scale.
const BLOCK: usize = 64;

/// What a block without a value to speak of is divided by.
const LEAST: f32 = 1e-38;

/// A matrix as quantization in blocks of 64 leaves it: codes and scales as bitsandbytes on a CPU has them. Blocks lie one
/// behind the other in the rows, `row` elements each.
///
/// Of rows whose length is no multiple of 64, bitsandbytes 0.50 takes the wrong scales where the CPU has AVX-512: with
/// `as_avx512` so does this.
pub(crate) fn rounded(values: &[f32], row: usize, as_avx512: bool) -> Vec<f32> {
    let blocks: Vec<(Vec<f32>, f32)> = values.chunks(BLOCK).map(shares).collect();
    let in_rows = as_avx512 && row.is_multiple_of(LANES);
    let scale = |at: usize| {
        let block = if in_rows {
            at / row * (row / BLOCK) + at % row / BLOCK
        } else {
            at / BLOCK
        };
        blocks[block].1
    };
    let shares = blocks.iter().flat_map(|(shares, _)| shares);
    shares
        .enumerate()
        .map(|(at, share)| share * scale(at))
        .collect()
}

/// How many numbers AVX-512 has in a register: only rows that are full of such are taken by it.
const LANES: usize = 16;

/// The codes' values of a block, and its scale.
fn shares(block: &[f32]) -> (Vec<f32>, f32) {
    let largest = block
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    let divisor = largest.max(LEAST);
    let inverse = 1.0 / divisor;
    // bitsandbytes multiplies by the inverse in whole blocks, and divides in what is left at the end.
    let whole = block.len() == BLOCK;
    let shares = block.iter().map(|value| {
        let share = if whole {
            value * inverse
        } else {
            value / divisor
        };
        nearest(share.clamp(-1.0, 1.0))
    });
    (shares.collect(), if whole { largest } else { divisor })
}

/// The nearest of the values; halfway, the smaller one.
fn nearest(share: f32) -> f32 {
    let above = NF4_VALUES
        .windows(2)
        .position(|pair| f32::midpoint(pair[0], pair[1]) >= share);
    NF4_VALUES[above.unwrap_or(NF4_VALUES.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_code_stay() {
        let scaled: Vec<f32> = NF4_VALUES.iter().map(|value| value * 3.0).collect();
        assert_eq!(rounded(&scaled, 16, false), scaled);
        assert_eq!(rounded(&[0.0; 70], 35, false), [0.0; 70]);
    }

    #[test]
    fn no_value_of_the_code_is_nearer() {
        let values: Vec<f32> = (0..200).map(|at| (at as f32 * 12.9898).sin()).collect();
        for (block, found) in values
            .chunks(BLOCK)
            .zip(rounded(&values, 40, false).chunks(BLOCK))
        {
            let largest = block
                .iter()
                .fold(0.0_f32, |most, value| most.max(value.abs()));
            for (value, found) in block.iter().zip(found) {
                let least = NF4_VALUES
                    .iter()
                    .map(|code| (code * largest - value).abs())
                    .fold(f32::MAX, f32::min);
                assert!(((found - value).abs() - least).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn avx512_counts_blocks_by_whole_ones_in_a_row() {
        // Two blocks: their largest values are 1 and 2.
        let values: Vec<f32> = (0..128).map(|at| if at < 64 { 1.0 } else { 2.0 }).collect();
        let all = |row, as_avx512| rounded(&values, row, as_avx512);
        assert_eq!(all(32, false), values);
        assert_eq!(all(32, true), [1.0; 128]);
        // Rows that are whole blocks, or not whole registers, are right.
        assert_eq!(all(64, true), values);
        assert_eq!(all(8, true), values);
    }
}

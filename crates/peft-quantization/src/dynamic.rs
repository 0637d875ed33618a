//! The 8-bit dynamic map of the second quantization, and torch's mean.

use std::sync::LazyLock;

/// Weights of the map's seven exponents.
const EXPONENTS: [f64; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// Points of the grid on which bitsandbytes' CPU kernel looks codes up, less one.
const GRID: f32 = 65_535.0;

static MAP: LazyLock<[f32; 256]> = LazyLock::new(map);

static BOUNDS: LazyLock<Vec<f32>> = LazyLock::new(|| {
    MAP.windows(2)
        .map(|pair| f32::midpoint(pair[0], pair[1]))
        .collect()
});

/// Values of the 256 codes, from small to large: dynamic tree quantization (Dettmers 2016,
/// arXiv:1511.04561, section 2.2) with a sign and at most seven bits of exponent.
pub(crate) fn dynamic_map() -> &'static [f32; 256] {
    &MAP
}

fn map() -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for (bits, exponent) in EXPONENTS.into_iter().enumerate() {
        let boundaries = linspace((1 << bits) + 1);
        for pair in boundaries.windows(2) {
            let value = exponent as f32 * f32::midpoint(pair[0], pair[1]);
            values.extend([value, -value]);
        }
    }
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|code| values[code])
}

/// Evenly spaced numbers from 0.1 to 1 as `torch.linspace` rounds them: from the nearer end, fused.
fn linspace(count: usize) -> Vec<f32> {
    let (start, end) = (0.1_f32, 1.0_f32);
    let step = (end - start) / (count - 1) as f32;
    (0..count)
        .map(|index| {
            if index < count / 2 {
                step.mul_add(index as f32, start)
            } else {
                (-step).mul_add((count - 1 - index) as f32, end)
            }
        })
        .collect()
}

/// The code of a value in [-1, 1], as bitsandbytes' CPU kernel finds it: the value moves to the nearest
/// of 65,536 points, the point gets the code nearest to it. CUDA's kernel leaves the points out; in one
/// case of 700 or so its code is the neighbour.
pub(crate) fn dynamic_code(value: f32) -> u8 {
    let point = ((value.clamp(-1.0, 1.0) + 1.0) * 0.5).mul_add(GRID, 0.5) as u16;
    let nearest = 2.0 * f32::from(point) / GRID - 1.0;
    BOUNDS.partition_point(|bound| *bound < nearest) as u8
}

/// Lanes of the vectors in which torch adds numbers up (AVX2's, also where there is AVX-512).
const LANES: usize = 8;
/// Sums that are built up side by side.
const GROUP: usize = 4;
/// Levels of the cascade of sums.
const LEVELS: usize = 4;

/// The mean as torch computes it with one thread, in its order of additions, and so to the last bit.
pub(crate) fn mean(values: &[f32]) -> f32 {
    let sum = if values.len() < LANES {
        sum_of_rows(values.as_chunks::<1>().0)[0]
    } else {
        let (rows, rest) = values.as_chunks::<LANES>();
        let rest = rest.iter().fold(0.0_f32, |sum, value| sum + value);
        sum_of_rows(rows)
            .iter()
            .fold(rest, |sum, value| sum + value)
    };
    sum / values.len() as f32
}

fn add<const N: usize>(sum: &mut [f32; N], row: &[f32; N]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += value;
    }
}

fn add_group<const N: usize>(sums: &mut [[f32; N]; GROUP], rows: &[[f32; N]; GROUP]) {
    for (sum, row) in sums.iter_mut().zip(rows) {
        add(sum, row);
    }
}

fn sum_of_rows<const N: usize>(rows: &[[f32; N]]) -> [f32; N] {
    let (groups, rest) = rows.as_chunks::<GROUP>();
    let [mut sum, others @ ..] = cascade(groups);
    for row in rest.iter().chain(&others) {
        add(&mut sum, row);
    }
    sum
}

/// Sums of sums: a level passes its sum on whenever it has added as many as fit a power of two.
fn cascade<const N: usize>(groups: &[[[f32; N]; GROUP]]) -> [[f32; N]; GROUP] {
    let bits = groups.len().next_power_of_two().trailing_zeros() as usize;
    let power = (bits / LEVELS).max(4);
    let step = 1 << power;
    let zero = [[0.0; N]; GROUP];
    let mut levels = [zero; LEVELS];
    let steps = groups.chunks_exact(step);
    let rest = steps.remainder();
    for (index, groups) in steps.enumerate() {
        for group in groups {
            add_group(&mut levels[0], group);
        }
        let added = (index + 1) * step;
        for level in 1..LEVELS {
            let passed = std::mem::replace(&mut levels[level - 1], zero);
            add_group(&mut levels[level], &passed);
            if added & ((step - 1) << (level * power)) != 0 {
                break;
            }
        }
    }
    for group in rest {
        add_group(&mut levels[0], group);
    }
    let [mut sum, others @ ..] = levels;
    for level in &others {
        add_group(&mut sum, level);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_sorted_and_signed() {
        let map = dynamic_map();
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(map[127].to_bits(), 0.0_f32.to_bits());
        assert_eq!(map[255].to_bits(), 1.0_f32.to_bits());
        // 1 has no opposite, all others have.
        for code in 1..128 {
            assert_eq!(map[127 - code].to_bits(), (-map[127 + code]).to_bits());
        }
    }

    #[test]
    fn codes_are_within_a_point_of_the_nearest() {
        assert_eq!([dynamic_code(-1.0), dynamic_code(1.0)], [0, 255]);
        for index in -5000_i16..=5000 {
            let value = f32::from(index) / 5000.0;
            let error = (dynamic_map()[usize::from(dynamic_code(value))] - value).abs();
            let least = dynamic_map()
                .iter()
                .map(|entry| (entry - value).abs())
                .fold(f32::MAX, f32::min);
            assert!(error <= least + 2.1 / GRID, "{value}: {error}, {least}");
        }
    }

    #[test]
    fn sums_of_whole_numbers_are_exact() {
        for count in [1, 2, 7, 8, 9, 31, 64, 100, 1000, 5000] {
            let values: Vec<f32> = (0..count).map(|value| (value % 97) as f32).collect();
            let exact: u32 = (0..count).map(|value| value % 97).sum();
            let expected = exact as f32 / count as f32;
            assert_eq!(mean(&values).to_bits(), expected.to_bits(), "{count}");
        }
    }
}

//! Laws of every format, on matrices of any size.

use peft_ops::quantized::QuantizedMatrix;
use peft_quantization::{
    BLOCK_SIZES, FourBit, FourBitKind, FourBitOptions, HalfRows, Part, Scales,
};
use peft_testing::{farthest, largest};
use proptest::prelude::*;

/// Numbers that depend on the seed only: bell-like, now and then far off.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 16_777_216.0 - 0.5
    };
    (0..count)
        .map(|index| {
            let sum: f32 = (0..4).map(|_| uniform()).sum();
            if index % 211 == 13 {
                sum * 50.0
            } else {
                sum * 0.05
            }
        })
        .collect()
}

fn options() -> impl Strategy<Value = FourBitOptions> {
    (any::<bool>(), 0..BLOCK_SIZES.len(), any::<bool>()).prop_map(|(normal, size, nested)| {
        let kind = if normal {
            FourBitKind::Nf4
        } else {
            FourBitKind::Fp4
        };
        FourBitOptions::new(kind)
            .with_block_size(BLOCK_SIZES[size])
            .with_double_quantization(nested)
    })
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Rows decoded by themselves are those rows of all.
fn rows_are_slices(
    matrix: &dyn QuantizedMatrix,
    first: usize,
    count: usize,
) -> Result<(), TestCaseError> {
    let [rows, columns] = matrix.shape();
    let mut all = vec![0.0; rows * columns];
    matrix.decode(0, &mut all);
    let first = first % rows;
    let count = count % (rows - first + 1);
    let mut some = vec![0.0; count * columns];
    matrix.decode(first, &mut some);
    let expected = &all[first * columns..(first + count) * columns];
    prop_assert_eq!(bits(&some), bits(expected));
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn errors_are_half_a_gap_at_most(
        rows in 1_usize..40, columns in 1_usize..130, options in options(), seed: u64,
    ) {
        let options = options.with_double_quantization(false);
        let values = numbers(rows * columns, seed);
        let matrix = FourBit::quantize(&values, [rows, columns], options).unwrap();
        let share = options.kind.largest_gap() / 2.0 * 1.000_01;
        let decoded = matrix.to_values();
        let blocks = values.chunks(options.block_size).zip(decoded.chunks(options.block_size));
        for (index, (block, decoded)) in blocks.enumerate() {
            let largest = largest(block.iter().copied());
            prop_assert_eq!(f64::from(matrix.scales().get(index)).to_bits(), largest.to_bits());
            let error = farthest(block.iter().copied(), decoded.iter().copied());
            prop_assert!(error <= f64::from(share) * largest, "{} {:?} {:?}", error, block, decoded);
        }
    }

    #[test]
    fn double_quantization_moves_scales_little(
        rows in 1_usize..40, columns in 1_usize..130, options in options(), seed: u64,
    ) {
        let values = numbers(rows * columns, seed);
        let quantize = |nested| {
            let options = options.with_double_quantization(nested);
            FourBit::quantize(&values, [rows, columns], options).unwrap()
        };
        let (plain, nested) = (quantize(false), quantize(true));
        prop_assert_eq!(plain.codes(), nested.codes());
        let Scales::Nested { absmax, .. } = nested.scales() else {
            panic!("scales are not nested");
        };
        let largest = largest(absmax.iter().copied());
        for block in 0..plain.scales().len() {
            let (exact, found) = (plain.scales().get(block), nested.scales().get(block));
            // Half the map's largest gap, and rounding.
            let tolerance = 0.008 * largest + 1e-6 * f64::from(exact.abs());
            prop_assert!(farthest([exact], [found]) <= tolerance, "{} {}", exact, found);
        }
    }

    #[test]
    fn rows_of_4_bits_are_slices(
        rows in 1_usize..40, columns in 1_usize..130, options in options(), seed: u64,
        first: usize, count: usize,
    ) {
        let values = numbers(rows * columns, seed);
        let matrix = FourBit::quantize(&values, [rows, columns], options).unwrap();
        rows_are_slices(&matrix, first, count)?;
    }

    #[test]
    fn rows_of_16_bits_are_slices(
        rows in 1_usize..40, columns in 1_usize..130, seed: u64, first: usize, count: usize,
    ) {
        let values = numbers(rows * columns, seed);
        rows_are_slices(&HalfRows::bf16(&values, [rows, columns]).unwrap(), first, count)?;
        rows_are_slices(&HalfRows::f16(&values, [rows, columns]).unwrap(), first, count)?;
    }

    #[test]
    fn parts_give_the_matrix_back(
        rows in 1_usize..40, columns in 1_usize..130, options in options(), seed: u64,
    ) {
        let values = numbers(rows * columns, seed);
        let matrix = FourBit::quantize(&values, [rows, columns], options).unwrap();
        let again = FourBit::from_parts(&matrix.to_parts()).unwrap();
        prop_assert_eq!(again, matrix);
    }

    /// Damaged parts are refused or read; never is there a panic.
    #[test]
    fn damage_does_no_harm(
        options in options(), seed: u64, part: usize, at: usize, byte: u8, cut in 0_usize..4,
    ) {
        let values = numbers(6 * 50, seed);
        let matrix = FourBit::quantize(&values, [6, 50], options).unwrap();
        let mut parts = matrix.to_parts();
        let name = parts.keys().nth(part % parts.len()).unwrap().clone();
        let Part { bytes, .. } = parts.get_mut(&name).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        if let Ok(matrix) = FourBit::from_parts(&parts) {
            prop_assert!(matrix.to_values().iter().all(|value| value.is_finite()));
        } else {
            prop_assert!(cut > 0 || name != "weight");
        }
    }
}

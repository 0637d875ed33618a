//! Every way to multiply, with and without the unit, against sums in f64 of rounded numbers.

mod low_rank;

use std::sync::{Mutex, PoisonError};

use proptest::prelude::*;

use super::portable::{round, widen};
use super::*;

/// Only tests of this file turn the unit off.
static ALONE: Mutex<()> = Mutex::new(());

/// Those of them that the processor lacks are tested as the next below.
const UNITS_OF_TESTS: [Units; 3] = [Units::Tiles, Units::Vectors, Units::None];

/// Numbers of every size, that depend on the seed only.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    (0..count)
        .map(|index| {
            let bits = crate::cpu::math::coin(seed, index);
            let unit = bits as f32 / u32::MAX as f32 * 2.0 - 1.0;
            unit * 2_f32.powi((bits % 7) as i32 - 3)
        })
        .collect()
}

fn rounded(values: &[f32]) -> Vec<f64> {
    let rounded = values.iter().map(|value| widen(round(*value)));
    rounded.map(f64::from).collect()
}

/// The transposed of `[rows, columns]`.
fn transposed(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let place = |index| index % rows * columns + index / rows;
    (0..rows * columns)
        .map(|index| values[place(index)])
        .collect()
}

/// Runs on a pool of as many threads.
fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(work)
}

/// The bits of rounded numbers.
fn halves(values: &[f32]) -> Vec<u16> {
    values.iter().map(|value| round(*value) as u16).collect()
}

/// What is rounded already is packed as what is rounded then.
fn check_halves(b: &[f32], b_t: &[f32], [rows, columns]: [usize; 2]) {
    let expected = Packed::new(Matrix::new(b, rows, columns));
    let (halves, turned) = (halves(b), halves(b_t));
    assert_eq!(
        Packed::new(Matrix::new(&halves, rows, columns)),
        expected,
        "rows of halves"
    );
    assert_eq!(
        Packed::new(Matrix::new(&turned, columns, rows).t()),
        expected,
        "columns of halves"
    );
}

/// All ways to multiply `a` `[rows, inner]` by `b` `[inner, columns]`, with the unit and without.
fn check([rows, inner, columns]: [usize; 3], threads: usize, alpha: f32, seed: u64) {
    let (a, b) = (
        numbers(rows * inner, seed),
        numbers(inner * columns, seed ^ 1),
    );
    let there = numbers(rows * columns, seed ^ 2);
    let (exact_a, exact_b) = (rounded(&a), rounded(&b));
    let (a_t, b_t) = (
        transposed(&a, [rows, inner]),
        transposed(&b, [inner, columns]),
    );
    let (b_seen, b_t_seen) = (
        Matrix::new(&b, inner, columns),
        Matrix::new(&b_t, columns, inner),
    );
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for units in UNITS_OF_TESTS {
        set_units(units);
        let packed = Packed::new(b_seen);
        let packed_t = Packed::new(b_t_seen);
        assert_eq!(
            packed,
            Packed::new(b_t_seen.t()),
            "both orders are packed alike"
        );
        assert_eq!(
            packed,
            packed_t.transposed(),
            "and what is transposed when packed"
        );
        check_halves(&b, &b_t, [inner, columns]);
        for lhs in [
            Matrix::new(&a, rows, inner),
            Matrix::new(&a_t, inner, rows).t(),
        ] {
            let row = &there[..columns];
            let starts = [Start::Nothing, Start::Row(row), Start::There];
            for (way, start) in (0..5).flat_map(|way| starts.map(|start| (way, start))) {
                // Columns beside the product must stay.
                let width = columns + 3;
                let mut found = vec![f32::NAN; rows * width];
                for (found, there) in found.chunks_mut(width).zip(there.chunks(columns)) {
                    found[1..=columns].copy_from_slice(there);
                }
                on_threads(threads, || {
                    let mut whole = MatrixMut::new(&mut found, rows, width);
                    let mut dst = whole.column_block(1, columns);
                    match way {
                        0 => multiply(&mut dst, start, lhs, packed.panels(), alpha, true),
                        1 => multiply_by(&mut dst, start, lhs, b_seen, alpha, None, true),
                        2 => multiply_by(&mut dst, start, lhs, b_t_seen.t(), alpha, None, true),
                        3 => {
                            let halves = halves(&b);
                            let rhs = Matrix::new(&halves, inner, columns);
                            multiply_by(&mut dst, start, lhs, rhs, alpha, None, true);
                        }
                        _ => multiply_by_transposed(
                            &mut dst,
                            start,
                            lhs,
                            packed_t.panels(),
                            alpha,
                            None,
                            true,
                        ),
                    }
                });
                for row in 0..rows {
                    let found = &found[row * width..(row + 1) * width];
                    assert!(found[0].is_nan() && found[columns + 1..].iter().all(|x| x.is_nan()));
                    for column in 0..columns {
                        let terms = (0..inner)
                            .map(|k| exact_a[row * inner + k] * exact_b[k * columns + column]);
                        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| {
                            (sum + term, size + term.abs())
                        });
                        let before = f64::from(match start {
                            Start::Nothing => 0.0,
                            Start::Row(row) => row[column],
                            Start::There => there[row * columns + column],
                        });
                        let expected = f64::from(alpha) * sum + before;
                        let bound = 1e-6 * (f64::from(alpha.abs()) * size + before.abs()) + 1e-30;
                        let error = (f64::from(found[column + 1]) - expected).abs();
                        assert!(
                            error <= bound,
                            "way {way}, {units:?}, [{row}, {column}]: {error} beside {bound}"
                        );
                    }
                }
            }
        }
    }
    set_units(Units::Tiles);
    drop(guard);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_are_sums_of_rounded_numbers(
        rows in 1_usize..70, inner in 0_usize..100, columns in 1_usize..110, threads in 1_usize..5,
        alpha in -2.0_f32..2.0, seed: u64,
    ) {
        check([rows, inner, columns], threads, alpha, seed);
    }
}

#[test]
fn many_rows_deep_sums_and_wide_matrices_are_split() {
    // More than one block of rows, of pairs, of columns; for some, on all threads.
    for (shape, threads) in [
        ([400, 33, 65], 4),
        ([3, 4 * PAIRS + 3, 40], 2),
        ([2, 70, 33_000], 3),
        ([130, 130, 130], 4),
    ] {
        check(shape, threads, 1.0, 5);
    }
}

#[test]
fn rounding_is_to_the_nearest_and_to_even() {
    for (value, expected) in [
        (1.0, 1.0),
        (1.0 + 2_f32.powi(-8), 1.0),
        (1.0 + 3.0 * 2_f32.powi(-8), 1.0 + 2_f32.powi(-6)),
        (1.0 + 2_f32.powi(-8) + 2_f32.powi(-20), 1.0 + 2_f32.powi(-7)),
        (-3.4e38, f32::NEG_INFINITY),
        (f32::INFINITY, f32::INFINITY),
    ] {
        let found = widen(round(value));
        assert!(
            found.to_bits() == f32::to_bits(expected),
            "{value}: {found}"
        );
    }
    assert!(widen(round(f32::NAN)).is_nan());
    assert!(widen(round(f32::from_bits(0x7f80_0001))).is_nan());
    // The unit rounds alike.
    let values: Vec<f32> = numbers(640, 7);
    let packed = |units| {
        set_units(units);
        let packed = Packed::new(Matrix::new(&values, 20, 32));
        set_units(Units::Tiles);
        packed
    };
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(packed(Units::Vectors), packed(Units::None));
    drop(guard);
}

#[test]
fn numbers_that_are_none_stay_so() {
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for units in UNITS_OF_TESTS {
        set_units(units);
        let mut a = numbers(20 * 40, 1);
        a[3 * 40 + 7] = f32::NAN;
        let b = numbers(40 * 10, 2);
        let packed = Packed::new(Matrix::new(&b, 40, 10));
        let mut out = vec![0.0; 200];
        let mut dst = MatrixMut::new(&mut out, 20, 10);
        multiply(
            &mut dst,
            Start::Nothing,
            Matrix::new(&a, 20, 40),
            packed.panels(),
            1.0,
            false,
        );
        for (row, out) in out.chunks(10).enumerate() {
            assert!(
                out.iter().all(|value| value.is_nan() == (row == 3)),
                "{row}"
            );
        }
    }
    set_units(Units::Tiles);
    drop(guard);
}

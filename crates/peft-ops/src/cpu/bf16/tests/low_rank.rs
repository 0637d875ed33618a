//! What a low rank adds to products.

use super::*;

/// Products with what a low rank adds to them, against sums in f64 of rounded numbers and whole factors.
fn check_low_rank(
    [rows, inner, columns, rank]: [usize; 4],
    threads: usize,
    scales: [f32; 2],
    seed: u64,
) {
    let numbers = |count, which| numbers(count, seed ^ which);
    let (a, b) = (numbers(rows * inner, 0), numbers(inner * columns, 1));
    let (down, up) = (numbers(inner * rank, 2), numbers(rank * columns, 3));
    let bias = numbers(columns, 4);
    let (exact_a, exact_b) = (rounded(&a), rounded(&b));
    let (b_t, down_t) = (
        transposed(&b, [inner, columns]),
        transposed(&down, [inner, rank]),
    );
    let lhs = Matrix::new(&a, rows, inner);
    let (b_seen, b_t_seen) = (
        Matrix::new(&b, inner, columns),
        Matrix::new(&b_t, columns, inner),
    );
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for units in UNITS_OF_TESTS {
        set_units(units);
        let (packed, packed_t) = (Packed::new(b_seen), Packed::new(b_t_seen));
        let of_up = Matrix::new(&up, rank, columns);
        for (way, start) in (0..4).flat_map(|way| [(way, Start::Nothing), (way, Start::Row(&bias))])
        {
            // A is read by rows and by columns.
            let of_down = if way == 0 {
                Matrix::new(&down_t, rank, inner).t()
            } else {
                Matrix::new(&down, inner, rank)
            };
            let mut found = vec![f32::NAN; rows * columns];
            let mut through = vec![f32::NAN; rows * rank];
            on_threads(threads, || {
                let factors = Factors::new(of_down, of_up, scales);
                let mut dst = MatrixMut::new(&mut found, rows, columns);
                if way == 0 {
                    let rhs = packed.panels();
                    multiply_with(&mut dst, start, lhs, rhs, &factors, &mut through, true);
                    return;
                }
                factors.through(lhs, &mut through, true);
                let added = Some(factors.added(&through));
                if way == 1 {
                    multiply_by(&mut dst, start, lhs, b_seen, 1.0, added, true);
                } else if way == 2 {
                    let decode = |first: usize, to: &mut [f32]| {
                        to.copy_from_slice(&b_t[first * inner..][..to.len()]);
                    };
                    multiply_by_rows(&mut dst, start, lhs, [columns, inner], decode, added);
                } else {
                    let rhs = packed_t.panels();
                    multiply_by_transposed(&mut dst, start, lhs, rhs, 1.0, added, true);
                }
            });
            for row in 0..rows {
                let x = &exact_a[row * inner..(row + 1) * inner];
                let mut passed = Vec::new();
                for index in 0..rank {
                    let terms = (0..inner).map(|k| x[k] * f64::from(down[k * rank + index]));
                    let (sum, size) =
                        terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                    let scale = f64::from(scales[0]);
                    let found = f64::from(through[row * rank + index]);
                    // A has 16 bits of precision.
                    let bound = 2e-5 * scale.abs() * size + 1e-30;
                    assert!((found - scale * sum).abs() <= bound, "way {way}, {units:?}");
                    passed.push((scale * sum, scale.abs() * size));
                }
                for column in 0..columns {
                    let before = match start {
                        Start::Row(row) => f64::from(row[column]),
                        _ => 0.0,
                    };
                    let (mut sum, mut size) = (before, before.abs());
                    for k in 0..inner {
                        let term = x[k] * exact_b[k * columns + column];
                        sum += term;
                        size += term.abs();
                    }
                    let mut bound = 1e-6 * size;
                    for (index, (value, size)) in passed.iter().enumerate() {
                        let up = f64::from(scales[1]) * f64::from(up[index * columns + column]);
                        sum += value * up;
                        bound += 3e-5 * size * up.abs();
                    }
                    let error = (f64::from(found[row * columns + column]) - sum).abs();
                    assert!(
                        error <= bound + 1e-30,
                        "way {way}, {units:?}, [{row}, {column}]: {error} beside {bound}"
                    );
                }
            }
        }
    }
    set_units(Units::Tiles);
    drop(guard);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_low_rank_is_added_with_more_bits_than_are_rounded_to(
        rows in 1_usize..70, inner in 0_usize..100, columns in 1_usize..110, rank in 1_usize..20,
        threads in 1_usize..5, of_down in -2.0_f32..2.0, of_up in -2.0_f32..2.0, seed: u64,
    ) {
        check_low_rank([rows, inner, columns, rank], threads, [of_down, of_up], seed);
    }
}

#[test]
fn a_low_rank_is_added_where_sums_are_split() {
    for (shape, threads) in [
        ([300, 33, 65, 8], 2),
        ([20, 4 * PAIRS + 3, 40, 8], 1),
        ([60, 2 * PAIRS + 70, 130, 17], 2),
        ([17, 70, 16_500, 3], 3),
        ([260, 150, 130, 16], 4),
    ] {
        check_low_rank(shape, threads, [1.0, 0.5], 11);
    }
}

#[test]
fn a_factor_that_is_infinite_stays_so() {
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut down = vec![1.0; 40];
    down[3] = f32::INFINITY;
    let (x, up) = (vec![1.0; 20 * 40], vec![1.0; 8]);
    let factors = Factors::new(
        Matrix::new(&down, 40, 1),
        Matrix::new(&up, 1, 8),
        [1.0, 1.0],
    );
    let mut through = vec![0.0; 20];
    factors.through(Matrix::new(&x, 20, 40), &mut through, false);
    assert!(through.iter().all(|value| *value == f32::INFINITY));
    drop(guard);
}

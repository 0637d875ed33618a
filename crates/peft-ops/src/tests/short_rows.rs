//! Products of few rows.

use crate::cpu::matrix::{Matrix, MatrixMut};
use crate::cpu::product::{Mode, multiply, product};

fn numbers(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|at| (at as f32 * step).sin()).collect()
}

/// Both matrices in the form that they are in, against sums one by one.
fn check([rows, depth, columns]: [usize; 3], transposed: bool) {
    let (a, b) = (numbers(rows * depth, 0.7), numbers(depth * columns, 0.3));
    let lhs = Matrix::new(&a, rows, depth);
    let rhs = if transposed {
        Matrix::new(&b, columns, depth).t()
    } else {
        Matrix::new(&b, depth, columns)
    };
    let at = |row: usize, column: usize| {
        let terms = (0..depth).map(|k| {
            let b = if transposed {
                b[column * depth + k]
            } else {
                b[k * columns + column]
            };
            f64::from(a[row * depth + k]) * f64::from(b)
        });
        terms.sum::<f64>()
    };
    let mut added = vec![1.0; rows * columns];
    let mut sum = MatrixMut::new(&mut added, rows, columns);
    multiply(&mut sum, Mode::Add, lhs, rhs, 0.5, true);
    let whole = product(lhs, rhs, 1.0);
    for row in 0..rows {
        for column in 0..columns {
            let expected = at(row, column);
            let found = f64::from(whole[row * columns + column]);
            assert!(
                (found - expected).abs() < 1e-3,
                "{row}, {column}: {found} {expected}"
            );
            let found = f64::from(added[row * columns + column]);
            assert!((found - 1.0 - 0.5 * expected).abs() < 1e-3);
        }
    }
}

#[test]
fn products_of_few_rows_are_right() {
    for rows in [1, 2, 3, 5, 8, 31] {
        check([rows, 70, 37], true);
        check([rows, 64, 4], true);
    }
    check([5, 401, 3000], true);
    for rows in [2, 7, 32] {
        check([rows, 130, 2048], false);
    }
    check([33, 70, 2048], false);
    check([8, 70, 1000], false);
    check([129, 70, 10], true);
    check([8, 20, 10], true);
}

#[test]
fn a_product_replaces_what_was_there() {
    let (a, b) = (numbers(2 * 80, 0.7), numbers(80 * 3, 0.3));
    let (lhs, rhs) = (Matrix::new(&a, 2, 80), Matrix::new(&b, 3, 80).t());
    let mut out = vec![9.0; 6];
    multiply(
        &mut MatrixMut::new(&mut out, 2, 3),
        Mode::Replace,
        lhs,
        rhs,
        1.0,
        false,
    );
    assert_eq!(out, product(lhs, rhs, 1.0));
}

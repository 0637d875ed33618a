//! An orthonormal basis of a matrix's columns, with its gradient.

use burn::tensor::{DType, Tensor, TensorData};

use crate::math::linalg;

/// Q of `matrix = Q R`, `[rows, k]` for a matrix `[rows, k]` with k at most `rows`, in f32. Its signs are those of
/// Householder's method, as LAPACK and torch have them.
///
/// The values are computed on the host. The gradient is that of the decomposition, for columns that are linearly
/// independent.
pub(crate) fn orthonormal_basis(matrix: Tensor<2>) -> Tensor<2> {
    let matrix = matrix.cast(DType::F32);
    let is_autodiff = matrix.is_autodiff();
    let (q, r) = linalg::qr(matrix.clone().without_autodiff());
    if !is_autodiff {
        return q;
    }
    let [_, k] = q.dims();
    let (q, inverse) = (Tensor::from_inner(q), Tensor::from_inner(inverse_upper(r)));
    // With X = P R⁻¹ for constant R: dQ = dX − Q U, where U is the upper triangular part of Qᵀ dX and, below, what makes
    // QᵀdQ antisymmetric.
    let x = matrix.matmul(inverse);
    let along = q.clone().transpose().matmul(x.clone());
    let below = along.clone().tril(-1);
    let upper = along - below.clone() + below.transpose();
    let one = Tensor::eye(k, &upper.device());
    x - q.matmul(upper - one)
}

/// For each column of the basis, whether it points the way that Gram and Schmidt's method makes it point, which never jumps.
pub(crate) fn signs(matrix: Tensor<2>) -> Vec<bool> {
    let (_, r) = linalg::qr(matrix.without_autodiff().cast(DType::F32));
    let [k, columns] = r.dims();
    let r: Vec<f32> = r.into_data().iter::<f32>().collect();
    (0..k).map(|at| r[at * columns + at] > 0.0).collect()
}

/// The inverse of an upper triangular matrix.
fn inverse_upper(r: Tensor<2>) -> Tensor<2> {
    let ([k, _], device) = (r.dims(), r.device());
    let r: Vec<f64> = r.into_data().iter::<f64>().collect();
    let mut inverse = vec![0.0_f64; k * k];
    for column in 0..k {
        for row in (0..=column).rev() {
            let known = (row + 1..=column).map(|at| r[row * k + at] * inverse[at * k + column]);
            let right = f64::from(u8::from(row == column));
            inverse[row * k + column] = (right - known.sum::<f64>()) / r[row * k + row];
        }
    }
    let inverse: Vec<f32> = inverse.into_iter().map(|value| value as f32).collect();
    Tensor::from_data(TensorData::new(inverse, [k, k]), (&device, DType::F32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    /// A matrix, its Q, and the gradient of `Σ q·w / 10` with w = 1, 2, 3 … in the order of elements: of torch 2.15, in f64.
    type Case = ([usize; 2], &'static [f32], &'static [f32], &'static [f32]);

    const CASES: &[Case] = &[
        (
            [5, 3],
            &[
                1.540_996, -0.293_429, -2.178_789, 0.568_431, -1.084_522, -1.398_595, 0.403_347,
                0.838_026, -0.719_258, -0.403_344, -0.596_635, 0.182_036, -0.856_675, 1.100_604,
                -1.071_187,
            ],
            &[
                -0.795_02, 0.170_31, -0.278_546, -0.293_261, -0.502_209, -0.551_549, -0.208_092,
                0.574_042, 0.016_267, 0.208_09, -0.434_335, -0.226_3, 0.441_97, 0.447_895,
                -0.752_815,
            ],
            &[
                -0.135_945, 0.312_779, -0.011_915, -0.277_6, 0.583_946, -0.043_397, 0.237_218,
                0.505_444, 0.353_968, 0.163_442, 0.902_467, 0.426_38, -0.393_999, 0.763_172,
                -0.084_32,
            ],
        ),
        // The last column's sign is that of R: there is nothing left to reflect.
        (
            [3, 3],
            &[
                0.122_701, -0.566_317, 0.373_115, -0.891_995, -1.509_108, 0.370_394, 1.456_503,
                0.939_81, 0.774_849,
            ],
            &[
                -0.071_657, -0.647_129, -0.759_005, 0.520_922, -0.673_216, 0.524_806, -0.850_592,
                -0.357_776, 0.385_344,
            ],
            &[
                1.208_987, -0.971_392, 0.0, -0.934_175, 0.671_659, 0.0, -0.673_96, 0.493_173, 0.0,
            ],
        ),
        (
            [4, 1],
            &[0.191_869, 1.263_795, -1.290_435, -0.791_103],
            &[-0.096_846, -0.637_901, 0.651_348, 0.399_31],
            &[-0.061_125, -0.171_098, -0.079_799, -0.157_99],
        ),
        ([1, 1], &[-0.020_879], &[1.0], &[0.0]),
    ];

    #[test]
    fn values_signs_and_gradients_are_torchs() {
        for (_, device) in peft_core::device::cpu_devices() {
            for (shape, matrix, q, gradient) in CASES {
                let tensor = |values: &[f32], device: &burn::tensor::Device| {
                    Tensor::<2>::from_data(TensorData::new(values.to_vec(), *shape), device)
                };
                let close = |found: Tensor<2>, expected: &[f32]| {
                    let expected = TensorData::new(expected.to_vec(), *shape);
                    let tolerance = Tolerance::<f32>::absolute(1e-4);
                    found.into_data().assert_approx_eq(&expected, tolerance);
                };
                close(orthonormal_basis(tensor(matrix, &device)), q);
                let autodiff = device.clone().autodiff();
                let matrix = tensor(matrix, &autodiff).require_grad();
                let found = orthonormal_basis(matrix.clone());
                close(found.clone().without_autodiff(), q);
                let count = shape[0] * shape[1];
                let weights: Vec<f32> = (1..=count).map(|at| at as f32 * 0.1).collect();
                let gradients = (found * tensor(&weights, &autodiff)).sum().backward();
                close(matrix.grad(&gradients).unwrap(), gradient);
            }
        }
    }
}

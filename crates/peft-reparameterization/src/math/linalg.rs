//! Singular values and orthonormal bases, computed on the host by faer.

use burn::tensor::{DType, Device, Tensor, TensorData};
use faer::linalg::solvers::Solve as _;
use faer::{Mat, MatRef};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// `U · diag(s) · Vᵀ`, singular values from large to small.
pub(crate) struct Svd {
    /// `[rows, k]`, orthonormal columns.
    pub(crate) u: Tensor<2>,
    /// `[k]`.
    pub(crate) s: Tensor<1>,
    /// `[k, columns]`, orthonormal rows.
    pub(crate) vt: Tensor<2>,
}

impl Svd {
    /// The largest `k` singular values and their vectors.
    pub(crate) fn truncated(self, k: usize) -> Self {
        let [rows, all] = self.u.dims();
        let columns = self.vt.dims()[1];
        let k = k.min(all);
        Self {
            u: self.u.slice([0..rows, 0..k]),
            s: self.s.narrow(0, 0, k),
            vt: self.vt.slice([0..k, 0..columns]),
        }
    }
}

fn host(matrix: Tensor<2>) -> Mat<f32> {
    let [rows, columns] = matrix.dims();
    let values: Vec<f32> = matrix.into_data().iter::<f32>().collect();
    MatRef::from_row_major_slice(&values, rows, columns).to_owned()
}

/// On the device, without autodiff, in `f32`.
fn device(matrix: MatRef<'_, f32>, device: &Device) -> Tensor<2> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        values.extend((0..columns).map(|column| matrix[(row, column)]));
    }
    Tensor::from_data(
        TensorData::new(values, [rows, columns]),
        (device, DType::F32),
    )
}

/// All singular values of a matrix and their vectors; `None` where it is not finite.
pub(crate) fn svd(matrix: Tensor<2>) -> Option<Svd> {
    let on = matrix.device();
    let matrix = host(matrix);
    if !matrix.is_all_finite() {
        return None;
    }
    // In f64: what is left over in f32 is 1e-4 of the matrix where singular values lie close.
    let svd = wide(&matrix).thin_svd().ok()?;
    Some(Svd {
        u: device(narrow(svd.U()).as_ref(), &on),
        s: values(svd.S().column_vector().iter(), &on),
        vt: device(narrow(svd.V().transpose()).as_ref(), &on),
    })
}

fn wide(matrix: &Mat<f32>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |row, column| {
        f64::from(matrix[(row, column)])
    })
}

fn narrow(matrix: MatRef<'_, f64>) -> Mat<f32> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |row, column| {
        matrix[(row, column)] as f32
    })
}

fn values<'a>(values: impl Iterator<Item = &'a f64>, on: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.map(|value| *value as f32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), (on, DType::F32))
}

/// The singular values of `M C`, for a matrix M `[rows, columns]` and a symmetric C `[columns, columns]` that can be
/// inverted, their vectors on the left, and those on the right times the inverse of C: so the three multiply to M. `None`
/// where one of them is not finite.
pub(crate) fn svd_within(matrix: Tensor<2>, metric: Tensor<2>) -> Option<Svd> {
    let on = matrix.device();
    let (matrix, metric) = (host(matrix), host(metric));
    if !matrix.is_all_finite() || !metric.is_all_finite() {
        return None;
    }
    let metric = wide(&metric);
    let svd = (wide(&matrix) * &metric).thin_svd().ok()?;
    let right = metric.partial_piv_lu().solve(svd.V());
    right.is_all_finite().then(|| Svd {
        u: device(narrow(svd.U()).as_ref(), &on),
        s: values(svd.S().column_vector().iter(), &on),
        vt: device(narrow(right.transpose()).as_ref(), &on),
    })
}

/// The inverse of a square matrix with `damping` added to its diagonal, computed in f64; `None` where it is not finite.
pub(crate) fn inverse(matrix: Tensor<2>, damping: f64) -> Option<Tensor<2>> {
    let on = matrix.device();
    let mut matrix = wide(&host(matrix));
    for at in 0..matrix.nrows() {
        matrix[(at, at)] += damping;
    }
    let size = matrix.nrows();
    let identity = Mat::<f64>::identity(size, size);
    let inverse = matrix.partial_piv_lu().solve(identity);
    inverse
        .is_all_finite()
        .then(|| device(narrow(inverse.as_ref()).as_ref(), &on))
}

/// About the largest `k` singular values and their vectors, by subspace iteration from a fixed random
/// start: Halko, Martinsson and Tropp 2011, algorithm 4.4.
pub(crate) fn svd_fast(matrix: Tensor<2>, k: usize, iterations: usize) -> Option<Svd> {
    const OVERSAMPLING: usize = 8;
    let [rows, columns] = matrix.dims();
    let wide = (k + OVERSAMPLING).min(rows.min(columns));
    let mut rng = StdRng::seed_from_u64(0x5eed);
    // Uniform numbers span as well as normal ones do.
    let start: Vec<f32> = (0..columns * wide)
        .map(|_| rng.random::<f32>() - 0.5)
        .collect();
    let start = TensorData::new(start, [columns, wide]);
    let start = Tensor::<2>::from_data(start, (&matrix.device(), DType::F32));
    let mut basis = qr(matrix.clone().matmul(start)).0;
    for _ in 0..iterations {
        let other = qr(matrix.clone().transpose().matmul(basis)).0;
        basis = qr(matrix.clone().matmul(other)).0;
    }
    let small = svd(basis.clone().transpose().matmul(matrix))?;
    let svd = Svd {
        u: basis.matmul(small.u),
        ..small
    };
    Some(svd.truncated(k))
}

/// `Q` `[rows, k]` with orthonormal columns and `R` `[k, columns]`, upper triangular, of a matrix.
pub(crate) fn qr(matrix: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let on = matrix.device();
    let qr = host(matrix).qr();
    (
        device(qr.compute_thin_Q().as_ref(), &on),
        device(qr.thin_R(), &on),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    #[test]
    fn factors_give_the_matrix_back() {
        for (_, on) in peft_core::device::cpu_devices() {
            for shape in [[7, 4], [4, 7], [5, 5]] {
                let matrix = Tensor::<2>::random(shape, Distribution::Default, &on);
                let whole = svd(matrix.clone()).unwrap();
                let again = (whole.u * whole.s.unsqueeze()).matmul(whole.vt);
                let tolerance = Tolerance::<f32>::absolute(1e-5);
                again
                    .into_data()
                    .assert_approx_eq(&matrix.to_data(), tolerance);
                let (q, r) = qr(matrix.clone());
                q.matmul(r)
                    .into_data()
                    .assert_approx_eq(&matrix.to_data(), tolerance);
            }
            // Of rank 3 and a little noise: the fast one finds the same subspace.
            let down = Tensor::<2>::random([60, 3], Distribution::Default, &on);
            let up = Tensor::<2>::random([3, 40], Distribution::Default, &on);
            let noise = Tensor::<2>::random([60, 40], Distribution::Default, &on) * 1e-3;
            let matrix = down.matmul(up) + noise;
            let product = |svd: Svd| (svd.u * svd.s.unsqueeze()).matmul(svd.vt).into_data();
            let exact = product(svd(matrix.clone()).unwrap().truncated(3));
            let fast = product(svd_fast(matrix, 3, 4).unwrap());
            fast.assert_approx_eq(&exact, Tolerance::<f32>::absolute(1e-4));
        }
    }

    #[test]
    fn what_is_not_finite_has_no_singular_values() {
        let (_, on) = &peft_core::device::cpu_devices()[0];
        assert!(svd(Tensor::<2>::full([3, 3], f32::NAN, on)).is_none());
    }
}

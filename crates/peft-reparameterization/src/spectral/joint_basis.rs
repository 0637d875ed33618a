//! A basis that several weights share, on the host and in `f64`.

use burn::tensor::{DType, Device, Tensor, TensorData};
use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};

fn host(matrix: &Tensor<2>) -> Mat<f64> {
    let [rows, columns] = matrix.dims();
    let matrix = matrix.clone().without_autodiff();
    let values: Vec<f64> = matrix.into_data().iter::<f64>().collect();
    MatRef::from_row_major_slice(&values, rows, columns).to_owned()
}

fn device(matrix: MatRef<'_, f64>, device: &Device) -> Tensor<2> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        values.extend((0..columns).map(|column| matrix[(row, column)] as f32));
    }
    let plain = device.clone().without_autodiff();
    Tensor::from_data(
        TensorData::new(values, [rows, columns]),
        (&plain, DType::F32),
    )
}

/// V `[in, in]` for weights `[in, out]`, of as many inputs: that of a higher-order generalized decomposition of the
/// weights, stacked by outputs. `None` where one of them is not finite.
///
/// The stack is Q R, and V = Rᵀ E with the eigenvectors E of the mean of (QᵢᵀQᵢ + αI)⁻¹ over the layers' parts Qᵢ of Q. With
/// fewer outputs than inputs altogether, V is the stack's right singular vectors.
pub(crate) fn joint_basis(weights: &[Tensor<2>], alpha: f64) -> Option<Tensor<2>> {
    let first = weights.first()?;
    let ([width, _], on) = (first.dims(), first.device());
    let outputs: Vec<usize> = weights.iter().map(|weight| weight.dims()[1]).collect();
    let rows: usize = outputs.iter().sum();
    let mut stack = Mat::<f64>::zeros(rows, width);
    let mut from = 0;
    for (weight, count) in weights.iter().zip(&outputs) {
        let part = host(weight);
        stack
            .as_mut()
            .subrows_mut(from, *count)
            .copy_from(part.transpose());
        from += count;
    }
    if !stack.is_all_finite() {
        return None;
    }
    if rows < width {
        return Some(device(stack.svd().ok()?.V(), &on));
    }
    let qr = stack.qr();
    let (q, r) = (qr.compute_thin_Q(), qr.thin_R());
    let one = Mat::<f64>::identity(width, width);
    let mut mean = Mat::<f64>::zeros(width, width);
    let mut from = 0;
    for count in &outputs {
        let part = q.as_ref().subrows(from, *count);
        let term = part.transpose() * part + faer::Scale(alpha) * &one;
        mean += faer::Scale(1.0 / outputs.len() as f64) * term.partial_piv_lu().solve(&one);
        from += count;
    }
    let eigen = mean.self_adjoint_eigen(Side::Lower).ok()?;
    Some(device((r.transpose() * eigen.U()).as_ref(), &on))
}

/// V⁻¹ W. `None` where it is not finite.
pub(crate) fn within(v: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    let inside = host(v).partial_piv_lu().solve(host(weight));
    let finite = inside.is_all_finite();
    finite.then(|| device(inside.as_ref(), &weight.device()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;
    use peft_core::device::cpu_devices;
    use peft_testing::farthest;

    #[test]
    fn weights_are_combinations_of_the_basis_they_share() {
        for (_, on) in cpu_devices() {
            // More outputs than inputs, and fewer.
            for shapes in [[[6, 6], [6, 5]], [[6, 2], [6, 3]]] {
                let weights = shapes
                    .map(|shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &on));
                let v = joint_basis(&weights, 1e-3).unwrap();
                for weight in weights {
                    let inside = within(&v, &weight).unwrap();
                    let again = v.clone().matmul(inside);
                    let values = |tensor: Tensor<2>| {
                        let data = tensor.into_data();
                        data.iter::<f32>().collect::<Vec<f32>>()
                    };
                    assert!(farthest(values(again), values(weight)) < 1e-4);
                }
            }
            let broken = Tensor::<2>::full([3, 3], f32::NAN, &on);
            assert!(joint_basis(&[broken], 1e-3).is_none());
        }
    }
}

//! Kernels of a convolution as a core and two factors, which LoHa and LoKr have in common.

use burn::tensor::Tensor;

/// The kernel `Σ_ij a[i, o] b[j, c] core[i, j, …]`, as `[out, in · h · w]`, of a core `[r, r, h, w]` and factors a
/// `[r, out]` and b `[r, in]` (Yeh et al. 2023, LyCORIS, section 3.2: a Tucker decomposition).
pub(crate) fn kernel(core: Tensor<4>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let [rank, _, height, width] = core.dims();
    let ([_, out], [_, channels]) = (a.dims(), b.dims());
    let size = height * width;
    let rows = a.transpose().matmul(core.reshape([rank, rank * size]));
    let rows = rows.reshape([out, rank, size]);
    let kernel = b.transpose().unsqueeze::<3>().matmul(rows);
    kernel.reshape([out, channels * size])
}

/// Whether upstream's `use_effective_conv2d` means anything for a kernel of this shape: not where it has one element.
pub(crate) fn has_core(kernel: &[usize]) -> bool {
    kernel.iter().any(|size| *size != 1)
}

/// Height and width of a kernel of one or two axes.
pub(crate) fn size(kernel: &[usize]) -> [usize; 2] {
    [
        kernel.first().copied().unwrap_or(1),
        kernel.get(1).copied().unwrap_or(1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{TensorData, Tolerance};

    #[test]
    fn a_kernel_is_the_sum_over_both_ranks() {
        let [rank, out, channels, height, width] = [2, 3, 2, 2, 2];
        let values = |count: usize, step: f32| -> Vec<f32> {
            (0..count).map(|at| (at as f32 * step).sin()).collect()
        };
        let core = values(rank * rank * height * width, 0.7);
        let (a, b) = (values(rank * out, 1.3), values(rank * channels, 2.1));
        let mut expected = Vec::new();
        for o in 0..out {
            for c in 0..channels {
                for at in 0..height * width {
                    let terms = (0..rank).flat_map(|i| (0..rank).map(move |j| (i, j)));
                    let terms = terms.map(|(i, j)| {
                        a[i * out + o]
                            * b[j * channels + c]
                            * core[(i * rank + j) * height * width + at]
                    });
                    expected.push(terms.sum::<f32>());
                }
            }
        }
        for (_, device) in peft_core::device::cpu_devices() {
            let core = TensorData::new(core.clone(), [rank, rank, height, width]);
            let (a, b) = (
                TensorData::new(a.clone(), [rank, out]),
                TensorData::new(b.clone(), [rank, channels]),
            );
            let found = kernel(
                Tensor::from_data(core, &device),
                Tensor::from_data(a, &device),
                Tensor::from_data(b, &device),
            );
            let expected = TensorData::new(expected.clone(), [out, channels * height * width]);
            found
                .into_data()
                .assert_approx_eq(&expected, Tolerance::<f32>::rel_abs(1e-5, 1e-6));
        }
    }
}

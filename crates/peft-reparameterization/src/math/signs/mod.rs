//! Signs of singular vectors, as torch has them.
//!
//! A pair of singular vectors may change its sign: the product stays. So a decomposition has signs by accident. They
//! follow from the algorithm: in torch on x86-64 that is MKL's `sgesdd`, a Householder bidiagonalization, then divide and
//! conquer down to parts of 25 singular values, which are found by QR iteration (Anderson et al. 1999, LAPACK Users'
//! Guide, section 2.4.5). A file that holds what was trained between singular vectors, and not the vectors, can only be read
//! with the signs that they had.
//!
//! This is that algorithm, as far as signs go: decisions are made with the precision of `f32`, and the arithmetic is `f64`
//! where that does not matter.

mod bidiagonal;
mod divide;
mod iterate;

use burn::tensor::{Tensor, TensorData};

use crate::math::linalg::Svd;
use bidiagonal::Bidiagonal;

/// The decomposition of `weight` `[in, out]` with the signs that torch gives to that of `[out, in]`. Where they cannot be
/// found out, they stay.
pub(crate) fn as_torch(weight: &Tensor<2>, svd: Svd) -> Svd {
    let [columns, rows] = weight.dims();
    // A row of the one is a column of the other.
    let values: Vec<f64> = weight.to_data().iter::<f64>().collect();
    let turned: Vec<Vec<f64>> = values.chunks(rows.max(1)).map(<[f64]>::to_vec).collect();
    let [count] = svd.s.dims();
    let found = Bidiagonal::of(turned, [rows, columns]);
    let Some(part) = found.and_then(Bidiagonal::left_vectors) else {
        return svd;
    };
    let vectors: Vec<f64> = svd.vt.to_data().iter::<f64>().collect();
    let signs = vectors.chunks(rows.max(1)).zip(&part);
    let signs = signs.map(|(ours, theirs)| {
        let along: f64 = ours.iter().zip(theirs).map(|(a, b)| a * b).sum();
        if along < 0.0 { -1.0_f32 } else { 1.0 }
    });
    let signs: Vec<f32> = signs.collect();
    if signs.len() != count {
        return svd;
    }
    let data = TensorData::new(signs, [count]);
    let signs = Tensor::<1>::from_data(data, (&svd.s.device(), svd.s.dtype()));
    Svd {
        u: svd.u * signs.clone().unsqueeze(),
        vt: svd.vt * signs.unsqueeze_dim(1),
        s: svd.s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::linalg::svd;
    use peft_core::device::cpu_devices;

    /// The signs of the largest elements of torch's left singular vectors, up to eight of them.
    #[test]
    fn signs_are_torchs() {
        for (shape, expected) in CASES {
            for (_, device) in cpu_devices() {
                let [rows, columns] = *shape;
                let value = |at: usize| {
                    let at = at as f64;
                    ((at * 0.7).sin() + (at * at * 0.013).cos()) as f32
                };
                let values: Vec<f32> = (0..rows * columns).map(value).collect();
                let matrix = TensorData::new(values, [rows, columns]);
                let weight = Tensor::<2>::from_data(matrix, &device).transpose();
                let found = as_torch(&weight, svd(weight.clone()).unwrap());
                let vectors: Vec<f32> = found.vt.into_data().iter::<f32>().collect();
                let signs = vectors.chunks(rows).take(expected.len()).map(|vector| {
                    let largest = vector.iter().fold(0.0_f32, |most, value| {
                        if value.abs() > most.abs() {
                            *value
                        } else {
                            most
                        }
                    });
                    if largest < 0.0 { '-' } else { '+' }
                });
                assert_eq!(signs.collect::<String>(), *expected, "{shape:?}");
            }
        }
    }

    /// `torch.linalg.svd` of torch 2.15 on x86-64, in `f32`.
    const CASES: &[([usize; 2], &str)] = &[
        ([10, 10], "-+---+--"),
        ([24, 24], "---++-++"),
        ([30, 30], "-+---++-"),
        ([32, 32], "-+-++---"),
        ([60, 60], "++-----+"),
        ([16, 28], "+++-+-++"),
        ([32, 64], "-+-+-++-"),
        ([40, 32], "-+--++++"),
        ([48, 32], "+-----++"),
        ([128, 40], "--+-+-++"),
    ];
}

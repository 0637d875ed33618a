//! Normalisations, and norms of columns.

use burn::tensor::Tensor;
#[cfg(feature = "flex")]
use burn::{backend::Dispatch, tensor::DType};

#[cfg(feature = "flex")]
use crate::extension::Fused;
#[cfg(feature = "flex")]
use crate::fused::{coins, fuses};
use crate::reference;

/// Layer normalisation over the last dimension: `norm(drop(x) + residual)·γ + β`.
///
/// `input` and `residual` are `[…, width]`, `gamma` and `beta` `[width]`; `epsilon` is added to the
/// variance. `dropout` is the probability of dropping an element of `input`, as [`dropout`](crate::dropout) does.
///
/// # Panics
///
/// If shapes do not fit, or `dropout` is not in [0, 1).
pub fn layer_norm<const D: usize>(
    input: Tensor<D>,
    residual: Option<Tensor<D>>,
    gamma: Tensor<1>,
    beta: Option<Tensor<1>>,
    epsilon: f64,
    dropout: f64,
) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if fuses(&input) && gamma.dtype() == DType::F32 {
        let width = input.dims()[D - 1];
        for row in [Some(&gamma), beta.as_ref()].into_iter().flatten() {
            assert_eq!(
                row.dims(),
                [width],
                "scale or shift is not of the input's width"
            );
        }
        if let Some(residual) = &residual {
            assert_eq!(residual.dims(), input.dims(), "the residual's shape");
        }
        let drops = dropout > 0.0 && input.is_autodiff();
        let coins = drops.then(|| coins(&input.device(), dropout));
        return Tensor::from_dispatch(<Dispatch as Fused>::layer_norm(
            input.into_dispatch(),
            residual.map(Tensor::into_dispatch).into(),
            gamma.into_dispatch(),
            beta.map(Tensor::into_dispatch).into(),
            epsilon as f32,
            coins,
        ));
    }
    let input = crate::dropout(input, dropout);
    reference::layer_norm(input, residual, gamma, beta, epsilon)
}

/// Normalisation by the root mean square over the last dimension, `x / sqrt(mean(x²) + ε)·γ` (Zhang and
/// Sennrich 2019), as in Llama.
///
/// `input` is `[…, width]`, `gamma` `[width]`.
///
/// # Panics
///
/// If shapes do not fit.
pub fn rms_norm<const D: usize>(input: Tensor<D>, gamma: Tensor<1>, epsilon: f64) -> Tensor<D> {
    assert_eq!(
        gamma.dims(),
        [input.dims()[D - 1]],
        "the scale is not of the input's width"
    );
    #[cfg(feature = "flex")]
    if fuses(&input) && gamma.dtype() == DType::F32 {
        return Tensor::from_dispatch(<Dispatch as Fused>::rms_norm(
            input.into_dispatch(),
            gamma.into_dispatch(),
            epsilon as f32,
        ));
    }
    reference::rms_norm(input, gamma, epsilon)
}

/// Euclidean norms of a matrix's columns: `[columns]` for `[rows, columns]`. No gradient goes through
/// them.
pub fn column_norms(matrix: Tensor<2>) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if fuses(&matrix) {
        return Tensor::from_dispatch(<Dispatch as Fused>::column_norms(matrix.into_dispatch()));
    }
    reference::column_norms(matrix)
}

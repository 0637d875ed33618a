//! Layer normalisation, of a sum with a residual where there is one.

use super::dropout::Coins;
use super::math::{dot_centred, square_distance, sum, vectors};
use super::matrix::{build_rows, change_rows, sum_rows};

/// Scale and shift, `[width]` each.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub(crate) gamma: &'a [f32],
    pub(crate) beta: Option<&'a [f32]>,
    pub(crate) epsilon: f32,
}

/// Mean and 1 / standard deviation of a row.
#[inline(always)]
fn moments(row: &[f32], epsilon: f32) -> (f32, f32) {
    let width = row.len() as f32;
    let mean = sum(row) / width;
    let variance = square_distance(row, mean) / width;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// `drop(x) + residual`.
pub(crate) fn residual_sum(
    x: &[f32],
    residual: &[f32],
    coins: Option<Coins>,
    width: usize,
) -> Vec<f32> {
    build_rows(x.len() / width, width, |first, part| {
        let from = first * width;
        let (x, residual) = (
            &x[from..from + part.len()],
            &residual[from..from + part.len()],
        );
        vectors(
            #[inline(always)]
            || match coins {
                None => {
                    for ((out, x), residual) in part.iter_mut().zip(x).zip(residual) {
                        *out = x + residual;
                    }
                }
                Some(coins) => {
                    for (i, ((out, x), residual)) in
                        part.iter_mut().zip(x).zip(residual).enumerate()
                    {
                        *out = x * coins.factor(from + i) + residual;
                    }
                }
            },
        );
    })
}

/// `(x − mean) / sd · γ + β`, row by row.
pub(crate) fn forward(x: &[f32], affine: Affine<'_>) -> Vec<f32> {
    let width = affine.gamma.len();
    build_rows(x.len() / width, width, |first, part| {
        let x = &x[first * width..first * width + part.len()];
        vectors(
            #[inline(always)]
            || {
                for (out, x) in part.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let (mean, scale) = moments(x, affine.epsilon);
                    match affine.beta {
                        Some(beta) => {
                            for (((out, x), gamma), beta) in
                                out.iter_mut().zip(x).zip(affine.gamma).zip(beta)
                            {
                                *out = (x - mean) * scale * gamma + beta;
                            }
                        }
                        None => {
                            for ((out, x), gamma) in out.iter_mut().zip(x).zip(affine.gamma) {
                                *out = (x - mean) * scale * gamma;
                            }
                        }
                    }
                }
            },
        );
    })
}

/// Turns the gradient of the output into that of the normalised rows `x`, in place.
pub(crate) fn backward_in_place(x: &[f32], affine: Affine<'_>, gradient: &mut [f32]) {
    let width = affine.gamma.len();
    change_rows(gradient, width, |first, part| {
        let x = &x[first * width..first * width + part.len()];
        vectors(
            #[inline(always)]
            || {
                for (g, x) in part.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let (mean, scale) = moments(x, affine.epsilon);
                    for (g, gamma) in g.iter_mut().zip(affine.gamma) {
                        *g *= gamma;
                    }
                    let count = width as f32;
                    let mean_g = sum(g) / count;
                    // Σ g·(x − mean)/sd
                    let slope = dot_centred(g, x, mean) * scale / count;
                    for (g, x) in g.iter_mut().zip(x) {
                        *g = scale * (*g - mean_g - (x - mean) * scale * slope);
                    }
                }
            },
        );
    });
}

/// Gradients of γ and β, `[width]` each.
pub(crate) fn affine_gradients(
    x: &[f32],
    affine: Affine<'_>,
    gradient: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let width = affine.gamma.len();
    let mut sums = sum_rows(x.len() / width, width, 2 * width, |first, last, sums| {
        let range = first * width..last * width;
        let (d_gamma, d_beta) = sums.split_at_mut(width);
        vectors(
            #[inline(always)]
            || {
                let rows = x[range.clone()].chunks_exact(width);
                for (x, g) in rows.zip(gradient[range.clone()].chunks_exact(width)) {
                    let (mean, scale) = moments(x, affine.epsilon);
                    for (((d_gamma, d_beta), x), g) in
                        d_gamma.iter_mut().zip(d_beta.iter_mut()).zip(x).zip(g)
                    {
                        *d_gamma += g * (x - mean) * scale;
                        *d_beta += g;
                    }
                }
            },
        );
    });
    let d_beta = sums.split_off(width);
    (sums, d_beta)
}

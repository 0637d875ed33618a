//! Layer normalisation, of a sum with a residual where there is one.

use super::buffers::{build, change_rows, sum_rows, task_rows};
use super::dropout::Coins;
use super::math::{dot_centred, square_distance, sum, vectors};

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

/// `norm(drop(x) + residual)·γ + β`, row by row; and what was normalised, if it is `kept` (empty
/// otherwise).
pub(crate) fn forward(
    x: &[f32],
    residual: Option<&[f32]>,
    coins: Option<Coins>,
    affine: Affine<'_>,
    kept: bool,
) -> [Vec<f32>; 2] {
    let width = affine.gamma.len();
    let widths = [width, if kept { width } else { 0 }];
    let block = task_rows(x.len() / width, width);
    build(x.len() / width, widths, block, |first, [out, sum]| {
        let from = first * width;
        let range = from..from + out.len();
        let out = out.copy(&x[range.clone()]);
        vectors(
            #[inline(always)]
            |_| {
                if let Some(coins) = coins {
                    for (i, out) in out.iter_mut().enumerate() {
                        *out *= coins.factor(from + i);
                    }
                }
                if let Some(residual) = residual {
                    for (out, residual) in out.iter_mut().zip(&residual[range]) {
                        *out += residual;
                    }
                }
            },
        );
        let sum = sum.copy(if kept { out } else { &[] });
        vectors(
            #[inline(always)]
            |_| {
                for row in out.chunks_exact_mut(width) {
                    let (mean, scale) = moments(row, affine.epsilon);
                    for (value, gamma) in row.iter_mut().zip(affine.gamma) {
                        *value = (*value - mean) * scale * gamma;
                    }
                    if let Some(beta) = affine.beta {
                        for (value, beta) in row.iter_mut().zip(beta) {
                            *value += beta;
                        }
                    }
                }
            },
        );
        [out, sum]
    })
}

/// Turns the gradient of the output into that of the normalised rows `x`, in place.
pub(crate) fn backward_in_place(x: &[f32], affine: Affine<'_>, gradient: &mut [f32]) {
    let width = affine.gamma.len();
    change_rows(gradient, width, |first, part| {
        let x = &x[first * width..first * width + part.len()];
        vectors(
            #[inline(always)]
            |_| {
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
            |_| {
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

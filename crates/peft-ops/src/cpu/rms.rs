//! Normalisation by the root of the mean square.

use super::buffers::{build_rows, change_rows, sum_rows};
use super::math::{dot_centred, square_distance, vectors};

/// 1 / root of the mean square of a row.
#[inline(always)]
fn scale(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (square_distance(row, 0.0) / row.len() as f32 + epsilon).sqrt()
}

/// `x / rms(x)·γ`, row by row.
pub(crate) fn forward(x: &[f32], gamma: &[f32], epsilon: f32) -> Vec<f32> {
    let width = gamma.len();
    build_rows(x.len() / width, width, |first, out| {
        let x = &x[first * width..first * width + out.len()];
        vectors(
            #[inline(always)]
            |_| {
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let scale = scale(x, epsilon);
                    for ((out, x), gamma) in out.iter_mut().zip(x).zip(gamma) {
                        *out = x * scale * gamma;
                    }
                }
            },
        );
    })
}

/// Turns the gradient of the output into that of the rows `x`, in place.
pub(crate) fn backward_in_place(x: &[f32], gamma: &[f32], epsilon: f32, gradient: &mut [f32]) {
    let width = gamma.len();
    change_rows(gradient, width, |first, part| {
        let x = &x[first * width..first * width + part.len()];
        vectors(
            #[inline(always)]
            |_| {
                for (g, x) in part.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let scale = scale(x, epsilon);
                    for (g, gamma) in g.iter_mut().zip(gamma) {
                        *g *= gamma;
                    }
                    let slope = dot_centred(g, x, 0.0) * scale * scale / width as f32;
                    for (g, x) in g.iter_mut().zip(x) {
                        *g = scale * (*g - x * slope);
                    }
                }
            },
        );
    });
}

/// The gradient of γ, `[width]`.
pub(crate) fn gamma_gradient(x: &[f32], width: usize, epsilon: f32, gradient: &[f32]) -> Vec<f32> {
    sum_rows(x.len() / width, width, width, |first, last, sums| {
        let range = first * width..last * width;
        vectors(
            #[inline(always)]
            |_| {
                let rows = x[range.clone()].chunks_exact(width);
                for (x, g) in rows.zip(gradient[range.clone()].chunks_exact(width)) {
                    let scale = scale(x, epsilon);
                    for ((sum, x), g) in sums.iter_mut().zip(x).zip(g) {
                        *sum += g * x * scale;
                    }
                }
            },
        );
    })
}

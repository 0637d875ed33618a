//! GELU, x·Φ(x) with the error function.

use super::math::{normal, vectors};
use super::matrix::{build_rows, change_rows};

/// `out[i] = x[i]·Φ(x[i])`.
pub(crate) fn forward(x: &[f32]) -> Vec<f32> {
    build_rows(x.len(), 1, |first, part| {
        vectors(
            #[inline(always)]
            || {
                let x = &x[first..first + part.len()];
                for (out, x) in part.iter_mut().zip(x) {
                    *out = x * normal(*x).0;
                }
            },
        );
    })
}

/// The same in place.
pub(crate) fn forward_in_place(x: &mut [f32]) {
    change_rows(x, 1, |_, part| {
        vectors(
            #[inline(always)]
            || {
                for x in part {
                    *x *= normal(*x).0;
                }
            },
        );
    });
}

/// Multiplies a gradient by Φ(x) + x·φ(x), in place.
pub(crate) fn backward_in_place(x: &[f32], gradient: &mut [f32]) {
    change_rows(gradient, 1, |first, part| {
        vectors(
            #[inline(always)]
            || {
                let x = &x[first..first + part.len()];
                for (gradient, x) in part.iter_mut().zip(x) {
                    let (below, density) = normal(*x);
                    *gradient *= below + x * density;
                }
            },
        );
    });
}

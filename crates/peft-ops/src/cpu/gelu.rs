//! GELU, x·Φ(x) with the error function.

use super::buffers::{build_rows, change_rows};
use super::math::{normal, vectors};

/// `out[i] = x[i]·Φ(x[i])`.
pub(crate) fn forward(x: &[f32]) -> Vec<f32> {
    build_rows(x.len(), 1, |first, out| {
        forward_into(&x[first..first + out.len()], out);
    })
}

/// The same on this thread.
pub(crate) fn forward_alone(x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    forward_into(x, &mut out);
    out
}

fn forward_into(x: &[f32], out: &mut [f32]) {
    vectors(
        #[inline(always)]
        |fma| {
            for (out, x) in out.iter_mut().zip(x) {
                *out = x * normal(fma, *x).0;
            }
        },
    );
}

/// The same in place.
pub(crate) fn forward_in_place(x: &mut [f32]) {
    change_rows(x, 1, |_, part| {
        vectors(
            #[inline(always)]
            |fma| {
                for x in part {
                    *x *= normal(fma, *x).0;
                }
            },
        );
    });
}

/// Multiplies a gradient by Φ(x) + x·φ(x), in place.
pub(crate) fn backward_in_place(x: &[f32], gradient: &mut [f32]) {
    change_rows(gradient, 1, |first, part| {
        through(&x[first..first + part.len()], part);
    });
}

/// The same on this thread.
pub(crate) fn through(x: &[f32], gradient: &mut [f32]) {
    vectors(
        #[inline(always)]
        |fma| {
            for (gradient, x) in gradient.iter_mut().zip(x) {
                let (below, density) = normal(fma, *x);
                *gradient *= fma.add(*x, density, below);
            }
        },
    );
}

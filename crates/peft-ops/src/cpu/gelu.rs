//! GELU, x·Φ(x) with the error function.

use super::buffers::{build, change_rows, task_rows};
use super::math::{normal, vectors};

/// `x·Φ(x)` of each number.
pub(crate) fn forward(x: &[f32]) -> Vec<f32> {
    let [out] = build(x.len(), [1], task_rows(x.len(), 1), |first, [out]| {
        let x = &x[first..first + out.len()];
        [out.map(
            x,
            #[inline(always)]
            |fma, x| x * normal(fma, x).0,
        )]
    });
    out
}

/// The same on this thread: `out[i] = x[i]·Φ(x[i])`.
pub(crate) fn forward_into(x: &[f32], out: &mut [f32]) {
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

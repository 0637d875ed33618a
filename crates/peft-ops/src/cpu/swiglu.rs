//! SwiGLU: silu of a gate, times what it gates.

use super::buffers::{build_rows, change_rows};
use super::math::{Fma, exp_nonpositive, vectors};

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
fn sigmoid(fma: Fma, x: f32) -> f32 {
    let small = exp_nonpositive(fma, -x.abs());
    let less = small / (1.0 + small);
    if x > 0.0 { 1.0 - less } else { less }
}

/// `gate·σ(gate)·up`.
pub(crate) fn forward(gate: &[f32], up: &[f32]) -> Vec<f32> {
    build_rows(gate.len(), 1, |first, out| {
        let range = first..first + out.len();
        let inputs = gate[range.clone()].iter().zip(&up[range]);
        vectors(
            #[inline(always)]
            |fma| {
                for (out, (gate, up)) in out.iter_mut().zip(inputs) {
                    *out = gate * sigmoid(fma, *gate) * up;
                }
            },
        );
    })
}

/// Gradients of the gate and of what it gates, the latter in the memory of `gradient`: two passes, and one
/// matrix less.
pub(crate) fn backward(gate: &[f32], up: &[f32], mut gradient: Vec<f32>) -> [Vec<f32>; 2] {
    let of_gate = build_rows(gate.len(), 1, |first, out| {
        let range = first..first + out.len();
        let inputs = gate[range.clone()].iter().zip(&up[range.clone()]);
        let inputs = inputs.zip(&gradient[range]);
        vectors(
            #[inline(always)]
            |fma| {
                for (out, ((gate, up), g)) in out.iter_mut().zip(inputs) {
                    let sigmoid = sigmoid(fma, *gate);
                    let slope = sigmoid * fma.add(*gate, 1.0 - sigmoid, 1.0);
                    *out = g * up * slope;
                }
            },
        );
    });
    change_rows(&mut gradient, 1, |first, part| {
        let gate = &gate[first..first + part.len()];
        vectors(
            #[inline(always)]
            |fma| {
                for (g, gate) in part.iter_mut().zip(gate) {
                    *g *= gate * sigmoid(fma, *gate);
                }
            },
        );
    });
    [of_gate, gradient]
}

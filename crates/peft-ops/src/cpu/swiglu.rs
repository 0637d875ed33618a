//! SwiGLU: silu of a gate, times what it gates.

use super::math::{Fma, exp_nonpositive, vectors};
use super::matrix::{build, build_rows, task_rows};

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

/// Gradients of the gate and of what it gates.
pub(crate) fn backward(gate: &[f32], up: &[f32], gradient: &[f32]) -> [Vec<f32>; 2] {
    let block = task_rows(gate.len(), 2);
    build(gate.len(), [1, 1], block, |first, [of_gate, of_up]| {
        let range = first..first + of_gate.len();
        let (of_gate, of_up) = (
            of_gate.copy(&gate[range.clone()]),
            of_up.copy(&up[range.clone()]),
        );
        let gradient = &gradient[range];
        vectors(
            #[inline(always)]
            |fma| {
                for ((gate, up), g) in of_gate.iter_mut().zip(of_up.iter_mut()).zip(gradient) {
                    let sigmoid = sigmoid(fma, *gate);
                    let silu = *gate * sigmoid;
                    let slope = sigmoid * fma.add(*gate, 1.0 - sigmoid, 1.0);
                    (*gate, *up) = (g * *up * slope, g * silu);
                }
            },
        );
        [of_gate, of_up]
    })
}

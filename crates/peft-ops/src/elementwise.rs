//! Operations on single elements: GELU, SwiGLU and dropout.

use burn::tensor::Tensor;
#[cfg(feature = "flex")]
use burn::{backend::Dispatch, tensor::DType};

#[cfg(feature = "flex")]
use crate::extension::Fused;
#[cfg(feature = "flex")]
use crate::fused::{coins, fuses};
use crate::reference;

/// GELU, x·Φ(x) with the error function, of any shape, with the gradient that belongs to it.
///
/// Burn's default backward pass differentiates the tanh approximation whatever the forward pass
/// computed; gradients are then off by up to 1e-3. This one's are exact on every backend.
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if fuses(&input) {
        return Tensor::from_dispatch(<Dispatch as Fused>::gelu(input.into_dispatch()));
    }
    reference::gelu(input)
}

/// Dropout: on autodiff devices, as Burn's module; elsewhere nothing. `probability` is in [0, 1).
///
/// No mask is kept for the backward pass: an element's coin is a function of its place and of a seed
/// that comes from Burn's generator.
///
/// # Panics
///
/// If `probability` is not in [0, 1).
pub fn dropout<const D: usize>(input: Tensor<D>, probability: f64) -> Tensor<D> {
    if !input.is_autodiff() || probability == 0.0 {
        return input;
    }
    #[cfg(feature = "flex")]
    if fuses(&input) {
        let coins = coins(&input.device(), probability);
        return Tensor::from_dispatch(<Dispatch as Fused>::dropout(input.into_dispatch(), coins));
    }
    reference::dropout(input, probability)
}

/// SwiGLU without its matrices: `silu(gate)·up`, both of one shape (Shazeer 2020). For the backward pass
/// only the two are kept.
///
/// # Panics
///
/// If shapes differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "the shapes of gate and up");
    #[cfg(feature = "flex")]
    if fuses(&gate) && up.dtype() == DType::F32 {
        return Tensor::from_dispatch(<Dispatch as Fused>::swiglu(
            gate.into_dispatch(),
            up.into_dispatch(),
        ));
    }
    reference::swiglu(gate, up)
}

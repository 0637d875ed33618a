#![doc = include_str!("../README.md")]

mod adamw;
mod attention;
mod cross_entropy;
mod gelu;
mod linear;
mod memory;
pub mod quantized;
pub mod reference;
mod rotary;

#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "flex")]
mod extension;
#[cfg(all(test, feature = "flex"))]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Tensor;
#[cfg(feature = "flex")]
use burn::{
    backend::{Dispatch, DispatchDevice},
    tensor::{DType, Device, Distribution},
};

#[cfg(feature = "flex")]
use cpu::dropout::Coins;
#[cfg(feature = "flex")]
use extension::Fused;

pub use adamw::{AdamWOptions, adamw};
pub use attention::{AttentionInputs, AttentionOptions, Segments, attention, linear_of_attention};
pub use cross_entropy::{linear_cross_entropy, linear_cross_entropy_with};
pub use linear::{
    LowRank, Weight, add_low_rank, linear, linear_of_gelu, linear_of_rms_norm, linear_of_swiglu,
};
pub use memory::{give_back_freed_memory, keep_freed_memory};
pub use rotary::{Rotary, rotary};

static FUSED: AtomicBool = AtomicBool::new(true);

/// Turns the fused operations off or on, for the whole process: for comparisons, and for finding
/// out whether a difference comes from them. They are on at the start.
pub fn set_fused(on: bool) {
    FUSED.store(on, Ordering::Relaxed);
}

/// Whether operations on `f32` tensors of this device are fused.
#[cfg(feature = "flex")]
fn is_fused(device: &Device) -> bool {
    let device: &DispatchDevice = match device.as_dispatch() {
        DispatchDevice::Autodiff(inner) => inner,
        other => other,
    };
    let cpu = matches!(device, DispatchDevice::Flex(_));
    cpu && FUSED.load(Ordering::Relaxed)
}

/// Whether the operation on this tensor is fused; all other tensors of an operation have its device,
/// and must have its dtype as Burn's own operations want them to.
#[cfg(feature = "flex")]
fn fuses<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && is_fused(&tensor.device())
}

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

/// Coins for a new mask, from the device's generator.
#[cfg(feature = "flex")]
fn coins(device: &Device, probability: f64) -> Coins {
    assert!(
        (0.0..1.0).contains(&probability),
        "dropout's probability {probability} is not in [0, 1)"
    );
    let device = device.clone().without_autodiff();
    let seed = Tensor::<1>::random([3], Distribution::Default, &device)
        .into_data()
        .iter::<f32>()
        .fold(0, |seed, uniform| {
            // 24 bits each.
            (seed << 24) ^ u64::from((uniform * 16_777_216.0) as u32)
        });
    Coins::new(probability, seed)
}

/// Layer normalisation over the last dimension: `norm(drop(x) + residual)·γ + β`.
///
/// `input` and `residual` are `[…, width]`, `gamma` and `beta` `[width]`; `epsilon` is added to the
/// variance. `dropout` is the probability of dropping an element of `input`, as [`dropout`] does.
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
    let input = self::dropout(input, dropout);
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

/// Euclidean norms of a matrix's columns: `[columns]` for `[rows, columns]`. No gradient goes through
/// them.
pub fn column_norms(matrix: Tensor<2>) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if fuses(&matrix) {
        return Tensor::from_dispatch(<Dispatch as Fused>::column_norms(matrix.into_dispatch()));
    }
    reference::column_norms(matrix)
}

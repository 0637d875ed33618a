//! Whether operations are fused, and the coins that fused dropout throws.

use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "flex")]
use burn::{
    backend::DispatchDevice,
    tensor::{DType, Device, Distribution, Tensor},
};

#[cfg(feature = "flex")]
use crate::cpu::dropout::Coins;

static FUSED: AtomicBool = AtomicBool::new(true);

/// Turns the fused operations off or on, for the whole process: for comparisons, and for finding
/// out whether a difference comes from them. They are on at the start.
pub fn set_fused(on: bool) {
    FUSED.store(on, Ordering::Relaxed);
}

/// Whether operations on `f32` tensors of this device are fused.
#[cfg(feature = "flex")]
pub(crate) fn is_fused(device: &Device) -> bool {
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
pub(crate) fn fuses<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && is_fused(&tensor.device())
}

/// Coins for a new mask, from the device's generator.
#[cfg(feature = "flex")]
pub(crate) fn coins(device: &Device, probability: f64) -> Coins {
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

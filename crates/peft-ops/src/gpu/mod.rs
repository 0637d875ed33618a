//! Operations on Burn's CubeCL backend: CUDA, Vulkan and the others, and CubeCL's CPU runtime.

mod attention;
mod cross_entropy;
mod extension;
mod kernels;
mod layout;
mod packed;
mod recorded;

use burn::backend::DispatchDevice;
use burn::tensor::Device;

pub(crate) use cross_entropy::{cross_entropy, decoded};
pub(crate) use packed::{Placed, PlacedOnce};
pub(crate) use recorded::attention;

/// Whether a device runs kernels.
pub(crate) fn is_cube(device: &Device) -> bool {
    let device: &DispatchDevice = match device.as_dispatch() {
        DispatchDevice::Autodiff(inner) => inner,
        other => other,
    };
    matches!(device, DispatchDevice::Cube(_))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    /// A device with kernels: CubeCL's CPU runtime, or the first GPU of a build that has no such runtime.
    #[cfg(feature = "cpu")]
    pub(super) fn device() -> Device {
        Device::cpu()
    }

    #[cfg(all(feature = "cuda", not(feature = "cpu")))]
    pub(super) fn device() -> Device {
        Device::cuda(0)
    }

    #[cfg(not(any(feature = "cuda", feature = "cpu")))]
    pub(super) fn device() -> Device {
        Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)
    }
}

//! The device selector: the only place that names a Burn backend.

use burn::tensor::Device;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use burn::tensor::DeviceType;

use crate::error::{Error, Result};

/// Names of the devices compiled in, in the order of preference.
///
/// `flex` and `ndarray` run on the CPU. `cuda` is an NVIDIA GPU (`cuda:1` is the second one), `wgpu` the best GPU that
/// a graphics driver offers, and `cpu` runs the GPU's kernels on the CPU, for tests. Which are there is decided by this
/// crate's features of the same names.
pub fn available() -> Vec<&'static str> {
    [
        ("flex", cfg!(feature = "flex")),
        ("ndarray", cfg!(feature = "ndarray")),
        ("cuda", cfg!(feature = "cuda")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("cpu", cfg!(feature = "cpu")),
    ]
    .into_iter()
    .filter_map(|(name, compiled)| compiled.then_some(name))
    .collect()
}

/// The device called `name`, without autodiff (see [`Device::autodiff`]).
///
/// `flex:bf16` is `flex`, and sets mixed precision for the whole process
/// ([`set_mixed_precision`](crate::ops::set_mixed_precision)): products with weights are in bfloat16.
///
/// # Errors
///
/// - [`Error::Device`] if the name is unknown or its backend is not compiled in.
/// - [`Error::NoDevice`] if this machine has no such GPU, or lacks what its kernels need; it says what.
pub fn device(name: &str) -> Result<Device> {
    #[cfg(feature = "flex")]
    if name == "flex:bf16" {
        crate::ops::set_mixed_precision(crate::ops::MixedPrecision::Bf16);
        return Ok(Device::flex());
    }
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, index.parse::<usize>().ok()),
        None => (name, Some(0)),
    };
    match (kind, index) {
        #[cfg(feature = "flex")]
        ("flex", Some(0)) => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", Some(0)) => Ok(ndarray()),
        #[cfg(feature = "cuda")]
        ("cuda", Some(index)) => cuda(name, index),
        #[cfg(feature = "wgpu")]
        ("wgpu", Some(0)) => wgpu(name),
        #[cfg(feature = "cpu")]
        ("cpu", Some(0)) => Ok(Device::cpu()),
        _ => Err(Error::Device {
            found: name.to_string(),
            available: available().join(", "),
        }),
    }
}

// Burn deprecates it in favour of flex; it stays a tested backend here for those who are on it.
#[cfg(feature = "ndarray")]
#[expect(deprecated)]
fn ndarray() -> Device {
    Device::ndarray()
}

/// The GPU, if it is there: Burn would only notice in a worker thread, at the first operation.
#[cfg(feature = "cuda")]
fn cuda(name: &str, index: usize) -> Result<Device> {
    let found = Device::enumerate(DeviceType::Cuda).len();
    if found == 0 {
        return Err(no_device(
            name,
            "no NVIDIA GPU was found: its driver (libcuda.so.1) is missing, or sees no GPU (`nvidia-smi` lists them)",
        ));
    }
    if index >= found {
        return Err(no_device(
            name,
            format!("this machine has {found} NVIDIA GPU(s), counted from cuda:0"),
        ));
    }
    if !has_libdevice() {
        return Err(no_device(
            name,
            "nvvm/libdevice/libdevice.10.bc was not found, which kernels with exp, log or tanh are linked with: install \
             NVIDIA's CUDA toolkit, or the Python package nvidia-nvvm, and set CUDA_PATH to the folder that holds nvvm",
        ));
    }
    Ok(Device::cuda(index))
}

/// Whether the compiler of kernels will find the mathematical functions of the CUDA toolkit, where it looks for them.
#[cfg(feature = "cuda")]
fn has_libdevice() -> bool {
    use std::path::PathBuf;
    let roots = match std::env::var_os("CUDA_PATH") {
        Some(root) => vec![PathBuf::from(root)],
        None => ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr"]
            .map(PathBuf::from)
            .to_vec(),
    };
    roots
        .iter()
        .any(|root| root.join("nvvm/libdevice/libdevice.10.bc").is_file())
}

/// The best adapter of the graphics drivers, if there is one.
#[cfg(feature = "wgpu")]
fn wgpu(name: &str) -> Result<Device> {
    use burn::tensor::DeviceKind;
    if Device::enumerate(DeviceType::Wgpu).is_empty() {
        return Err(no_device(
            name,
            "no graphics driver offers an adapter: install the GPU's Vulkan driver, or mesa-vulkan-drivers for one in software",
        ));
    }
    Ok(Device::wgpu(DeviceKind::DefaultDevice))
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn no_device(name: &str, missing: impl Into<String>) -> Error {
    Error::NoDevice {
        found: name.to_string(),
        missing: missing.into(),
    }
}

/// Devices that need no accelerator, with their names: what tests run on.
///
/// They are `flex` and `ndarray`, as far as they are compiled in. The environment variable `PEFT_TEST_DEVICES` names others,
/// with commas between them, as in `PEFT_TEST_DEVICES=cpu`: tests run on a GPU's kernels by it.
///
/// # Panics
///
/// If the variable names a device that is not there; the message says why.
pub fn cpu_devices() -> Vec<(&'static str, Device)> {
    let named = std::env::var("PEFT_TEST_DEVICES").unwrap_or_default();
    if named.is_empty() {
        return on_cpu().collect();
    }
    named
        .split(',')
        .map(|name| match device(name) {
            Ok(device) => (known(name), device),
            Err(error) => panic!("PEFT_TEST_DEVICES={named}: {error}"),
        })
        .collect()
}

/// A device whose values are in the host's memory, for numbers that are drawn and read at once. Burn's default device
/// is a GPU's as soon as a GPU's backend is compiled in, whether there is a GPU or not.
///
/// Burn's default is given where no CPU backend is compiled in.
pub fn host() -> Device {
    on_cpu()
        .next()
        .map_or_else(Device::default, |(_, device)| device)
}

/// Whether values on this device are in the host's memory, so that reading one waits for nothing.
pub fn is_cpu(device: &Device) -> bool {
    let plain = device.clone().without_autodiff();
    on_cpu().any(|(_, cpu)| cpu == plain)
}

/// The CPU backends that are compiled in.
fn on_cpu() -> impl Iterator<Item = (&'static str, Device)> {
    available()
        .into_iter()
        .filter(|name| matches!(*name, "flex" | "ndarray"))
        .filter_map(|name| Some((name, device(name).ok()?)))
}

/// The name of a device that there is, without its number.
fn known(name: &str) -> &'static str {
    let kind = name.split(':').next();
    available()
        .into_iter()
        .find(|known| Some(*known) == kind)
        .unwrap_or("device")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_device_is_refused_with_what_there_is() {
        let error = device("tpu").unwrap_err().to_string();
        assert!(
            error.contains("tpu") && error.contains(available()[0]),
            "{error}"
        );
        assert!(device("flex:1").is_err());
    }

    /// Holds on machines without a GPU, and on those with one.
    #[cfg(feature = "cuda")]
    #[test]
    fn a_missing_gpu_is_an_error_and_no_panic() {
        let found = Device::enumerate(DeviceType::Cuda).len();
        let error = device(&format!("cuda:{found}")).unwrap_err().to_string();
        assert!(error.contains("NVIDIA GPU"), "{error}");
    }
}

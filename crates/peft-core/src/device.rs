//! The device selector: the only place that names a Burn backend.

use burn::tensor::Device;

use crate::error::{Error, Result};

/// Names of the devices compiled in, in the order of preference.
///
/// `flex` and `ndarray` run on the CPU, `cuda` on an NVIDIA GPU (`cuda:1` is the second one). Which
/// are there is decided by this crate's features of the same names.
pub fn available() -> Vec<&'static str> {
    let mut names = Vec::new();
    if cfg!(feature = "flex") {
        names.push("flex");
    }
    if cfg!(feature = "ndarray") {
        names.push("ndarray");
    }
    if cfg!(feature = "cuda") {
        names.push("cuda");
    }
    names
}

/// The device called `name`, without autodiff (see [`Device::autodiff`]).
///
/// `flex:bf16` is `flex`, and sets mixed precision for the whole process
/// ([`set_mixed_precision`](crate::ops::set_mixed_precision)): products with weights are in bfloat16.
///
/// # Errors
///
/// [`Error::Device`] if the name is unknown or its backend is not compiled in.
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
        ("cuda", Some(index)) => Ok(Device::cuda(index)),
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

/// Every device compiled in that needs no accelerator, with its name: what tests run on.
pub fn cpu_devices() -> Vec<(&'static str, Device)> {
    available()
        .into_iter()
        .filter(|name| *name != "cuda")
        .filter_map(|name| Some((name, device(name).ok()?)))
        .collect()
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
}

//! Values of LoRA's states: sizes, frozen factors that are computed late, and tensors on a device.

use std::sync::{Arc, OnceLock};

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Shape, Tensor};
use peft_core::method::LayoutParam;
use peft_core::{Error, Result};

use crate::lora::state::InitialFactors;

/// How LoRA is called in messages.
pub(crate) const TITLE: &str = "LoRA";

/// Refuses a field of LoRA's.
pub(crate) fn refuse<T>(
    field: &'static str,
    value: &dyn std::fmt::Debug,
    expected: impl Into<String>,
) -> Result<T> {
    Err(Error::config(TITLE, field, value, expected))
}

/// Rank and scale of one layer.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Size {
    pub(crate) rank: usize,
    pub(crate) scale: f64,
}

/// Frozen factors `[in, rank]` and `[rank, out]` beside `param`, computed when they are first looked at: not before a
/// file has been found to fit. Where `part` gives none, they are no numbers, so that it shows.
pub(crate) fn computed(
    param: &LayoutParam,
    rank: usize,
    part: impl Fn() -> Option<[Tensor<2>; 2]> + Clone + Send + Sync + 'static,
) -> InitialFactors {
    let [d_in, d_out] = [param.shape()[0], param.shape()[1]];
    let dtype = param.dtype();
    // Both factors come from one decomposition.
    let found: Arc<OnceLock<Option<[Tensor<2>; 2]>>> = Arc::default();
    let factor = |which: usize, shape: [usize; 2]| {
        let (part, found) = (part.clone(), found.clone());
        let compute = move |device: &Device, _: bool| {
            let plain = device.clone().without_autodiff();
            let value = match found.get_or_init(&part) {
                Some(factors) => factors[which].clone().to_device(&plain),
                None => Tensor::full(shape, f32::NAN, &plain),
            };
            on_device(value.cast(dtype), device)
        };
        let shape = Shape::from(shape.to_vec());
        Param::uninitialized(ParamId::new(), compute, param.device(), false, shape)
    };
    InitialFactors {
        a: factor(0, [d_in, rank]),
        b: factor(1, [rank, d_out]),
    }
}

/// A tensor without autodiff, on the device's autodiff side if it has one.
pub(crate) fn on_device<const D: usize>(value: Tensor<D>, device: &Device) -> Tensor<D> {
    if device.is_autodiff() {
        Tensor::from_inner(value)
    } else {
        value
    }
}

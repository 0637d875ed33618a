//! Parameters that are computed of a layer's own weight.

use std::sync::{Arc, OnceLock};

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Shape, Tensor};
use peft_core::method::LayoutParam;

/// Frozen parameters of these shapes, computed of `param`'s value `[in, out]`, which `compute` gets in `f32`.
///
/// They are computed when one of them is first looked at: not before a file has been found to fit. Where `compute` gives
/// none, because the weight is not finite, they are not a number, so that it shows.
pub(crate) fn of_weight<const N: usize>(
    param: &LayoutParam,
    shapes: [[usize; 2]; N],
    compute: impl Fn(Tensor<2>) -> Option<[Tensor<2>; N]> + Send + Sync + 'static,
) -> [Param<Tensor<2>>; N] {
    let (weight, dtype) = (param.value::<2>(), param.dtype());
    let compute = Arc::new(compute);
    let computed: Arc<OnceLock<Option<[Tensor<2>; N]>>> = Arc::default();
    let mut which = 0..N;
    shapes.map(|shape| {
        let at = which.next().unwrap_or_default();
        let (weight, compute, computed) = (weight.clone(), compute.clone(), computed.clone());
        let value = move |device: &Device, _: bool| {
            let plain = device.clone().without_autodiff();
            let computed = computed
                .get_or_init(|| compute(weight.clone().without_autodiff().cast(DType::F32)));
            let value = match computed {
                Some(values) => values[at].clone().to_device(&plain),
                None => Tensor::full(shape, f32::NAN, &plain),
            };
            on_device(value.cast(dtype), device)
        };
        let shape = Shape::from(shape.to_vec());
        Param::uninitialized(ParamId::new(), value, param.device(), false, shape)
    })
}

/// A tensor without autodiff, on the device's autodiff side if it has one.
fn on_device<const D: usize>(value: Tensor<D>, device: &Device) -> Tensor<D> {
    if device.is_autodiff() {
        Tensor::from_inner(value)
    } else {
        value
    }
}

/// A trained parameter that begins as `value`, whatever that was computed of.
pub(crate) fn beginning_as<const D: usize>(value: Tensor<D>) -> Param<Tensor<D>> {
    let device = value.device();
    Param::from_tensor(on_device(value.without_autodiff(), &device))
}

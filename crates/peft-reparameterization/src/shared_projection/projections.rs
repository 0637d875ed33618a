//! Frozen projections that layers share: their size, their corners, their values when first used.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use peft_core::method::{Layout, TargetLayer};

/// The largest input and output widths among the targets.
pub(crate) fn widest(targets: &[TargetLayer<'_>]) -> [usize; 2] {
    targets.iter().fold([0, 0], |[d_in, d_out], target| {
        [d_in.max(target.d_in), d_out.max(target.d_out)]
    })
}

/// Device and float type of what the targets share: the first one's.
pub(crate) fn first_like(targets: &[TargetLayer<'_>], layout: &Layout) -> (Device, DType) {
    targets.first().map_or_else(
        || layout.like(),
        |target| (target.weight.device(), target.weight.dtype()),
    )
}

/// Whether there can be a tensor of this shape at all.
pub(crate) fn fits(shape: &[usize]) -> bool {
    shape
        .iter()
        .try_fold(size_of::<f32>(), |bytes, &size| bytes.checked_mul(size))
        .is_some_and(|bytes| isize::try_from(bytes).is_ok())
}

/// The first elements of `tensor` along every axis.
pub(crate) fn corner<const D: usize>(tensor: Tensor<D>, shape: [usize; D]) -> Tensor<D> {
    if tensor.dims() == shape {
        return tensor;
    }
    tensor.slice(shape.map(|size| 0..size))
}

/// A parameter whose values are computed when they are first used. Values that a configuration says
/// all about take no memory so until a checkpoint's other tensors were checked.
pub(crate) fn lazy<const D: usize>(
    shape: [usize; D],
    (device, dtype): (&Device, DType),
    trained: bool,
    values: impl FnOnce() -> Vec<f32> + Send + Sync + 'static,
) -> Param<Tensor<D>> {
    // A quantized base has no float type of its own.
    let dtype = if dtype.is_float() { dtype } else { DType::F32 };
    let shape = Shape::from(shape.to_vec());
    let of_data = shape.clone();
    let init = move |device: &Device, require_grad: bool| {
        let data = TensorData::new(values(), of_data);
        Tensor::<D>::from_data(data, (device, dtype)).set_require_grad(require_grad)
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), trained, shape)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A tensor of a golden checkpoint.
    pub(crate) fn golden(case: &str, key: &str) -> Vec<f32> {
        let path = format!("tests/golden/{case}/adapter_model.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor(key).unwrap();
        let (values, _) = tensor.data().as_chunks::<4>();
        values.iter().copied().map(f32::from_le_bytes).collect()
    }

    #[test]
    fn a_size_that_overflows_fits_nowhere() {
        assert!(fits(&[256, 4096]));
        assert!(!fits(&[usize::MAX / 2, 3]));
        assert!(!fits(&[usize::MAX / 8, 4]));
    }
}

//! Frozen projections that layers share: their size, their corners, their values when first used.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use peft_core::Result;
use peft_core::checkpoint::transposed;
use peft_core::method::{Layout, MethodInfo, Plan, Shared, TargetLayer};

use crate::math::torch_random::TorchGenerator;

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

/// VeRA's frozen matrices, which all layers share.
pub(crate) struct VeraProjections {
    /// Seed for torch's generator.
    pub(crate) key: i64,
    /// Whether a file holds them.
    pub(crate) saved: bool,
    /// Columns of A.
    pub(crate) down: usize,
    /// Rows of B: r.
    pub(crate) up: usize,
}

impl VeraProjections {
    /// A `[in, down]` and B `[up, out]` of the widest layer, frozen, from a file or drawn from the key: handles for each
    /// of the targets.
    pub(crate) fn handles(
        &self,
        info: &MethodInfo,
        targets: &[TargetLayer<'_>],
        layout: &Layout,
        plan: &mut Plan,
    ) -> Result<impl Iterator<Item = (Shared<2>, Shared<2>)> + use<>> {
        let [d_in, d_out] = widest(targets);
        if !fits(&[self.down, d_in.max(d_out)]) {
            let expected = "a rank whose projections fit into memory";
            return Err(info.refusal("r", self.up, expected));
        }
        let (device, dtype) = first_like(targets, layout);
        let from_file = self.saved && !plan.is_new();
        // Upstream has them transposed.
        let (key, shapes) = (self.key, [[self.down, d_in], [d_out, self.up]]);
        let mut which = 0;
        let [a, b] = shapes.map(|[rows, columns]| {
            let at = which;
            which += 1;
            if from_file {
                let zeros = plan.init().zeros([columns, rows], (&device, dtype));
                return zeros.set_require_grad(false);
            }
            lazy([columns, rows], (&device, dtype), false, move || {
                transposed(&drawn(key, shapes)[at], [rows, columns])
            })
        });
        let of_all = |matrix| Shared::new(matrix, targets.len());
        Ok(of_all(a).zip(of_all(b)))
    }
}

/// VeRA's trained vectors, d of `size` elements and b: d at `d_initial` and b zero, or d normal and b one without it.
pub(crate) fn vera_vectors(
    d_initial: Option<f64>,
    size: usize,
    target: &TargetLayer<'_>,
    plan: &mut Plan,
) -> [Param<Tensor<1>>; 2] {
    let (d_out, like) = (target.d_out, target.like());
    if let Some(value) = d_initial {
        let d = lazy([size], like, true, move || vec![value as f32; size]);
        return [d, plan.init().zeros([d_out], like)];
    }
    let d = plan.init().normal([size], 1.0, like);
    [d, lazy([d_out], like, true, move || vec![1.0; d_out])]
}

/// Two matrices `[rows, columns]` as upstream draws them: torch's `kaiming_uniform_` with gain √2, one after the other.
pub(crate) fn drawn(key: i64, shapes: [[usize; 2]; 2]) -> [Vec<f32>; 2] {
    let mut generator = TorchGenerator::new(key.cast_unsigned());
    shapes.map(|[rows, fan_in]| {
        let bound = 3.0_f64.sqrt() * (2.0_f64.sqrt() / (fan_in as f64).sqrt());
        generator.uniform(rows * fan_in, -bound as f32, bound as f32)
    })
}

/// As [`lazy`], of integers of 64 bits; they are never trained.
pub(crate) fn lazy_integers<const D: usize>(
    shape: [usize; D],
    device: &Device,
    values: impl FnOnce() -> Vec<i64> + Send + Sync + 'static,
) -> Param<Tensor<D, Int>> {
    let shape = Shape::from(shape.to_vec());
    let of_data = shape.clone();
    let init = move |device: &Device, _| {
        Tensor::from_data(TensorData::new(values(), of_data), (device, DType::I64))
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), false, shape)
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
    fn a_key_gives_upstreams_projections() {
        for (case, name, shapes) in [
            ("vera", "vera", [[16, 32], [32, 16]]),
            ("bert_more/pvera", "pvera", [[16, 32], [32, 8]]),
        ] {
            for (ours, side) in drawn(0, shapes).into_iter().zip(["A", "B"]) {
                let theirs = golden(case, &format!("base_model.{name}_{side}"));
                assert_eq!(ours.len(), theirs.len());
                // To the last bit but one: torch contracts a product and a sum where the processor can.
                let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-7;
                assert!(ours.iter().zip(&theirs).all(close), "{case}: {side}");
            }
        }
    }

    #[test]
    fn a_size_that_overflows_fits_nowhere() {
        assert!(fits(&[256, 4096]));
        assert!(!fits(&[usize::MAX / 2, 3]));
        assert!(!fits(&[usize::MAX / 8, 4]));
    }
}

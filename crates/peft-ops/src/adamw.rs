//! The optimizer's step.

#[cfg(feature = "flex")]
use burn::tensor::TensorData;
use burn::tensor::{DType, Tensor};

use crate::options::AdamWOptions;
#[cfg(feature = "flex")]
use crate::{cpu, fused::fuses};

/// A step of AdamW (Loshchilov and Hutter 2019, algorithm 2), with Burn's arithmetic to the last bit: the new
/// parameter and its two moments, which are zeros before the first step, and of 32 bits where the parameter has 16.
/// None of the tensors may be on autodiff.
///
/// On Burn's CPU backend all of it is one pass, on all cores, in the memory that the parameter and the moments have
/// where nothing else holds it: Burn's own takes a dozen, on one, and moves them in every step, which leaves holes in
/// the heap.
///
/// # Panics
///
/// If shapes differ.
pub fn adamw<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: [Tensor<D>; 2],
    options: AdamWOptions,
) -> [Tensor<D>; 3] {
    for tensor in [&gradient, &moments[0], &moments[1]] {
        assert_eq!(tensor.dims(), parameter.dims(), "shapes of a step");
    }
    let dtype = parameter.dtype();
    if matches!(dtype, DType::F16 | DType::BF16) {
        // Computed in the moments' 32 bits, and rounded.
        let whole = parameter.cast(DType::F32);
        let [parameter, first, second] = adamw(whole, gradient.cast(DType::F32), moments, options);
        return [parameter.cast(dtype), first, second];
    }
    #[cfg(feature = "flex")]
    if fuses(&parameter) && moments.iter().all(|moment| moment.dtype() == DType::F32) {
        let device = parameter.device();
        let gradient = gradient.cast(DType::F32).into_data();
        let [first, second] = moments;
        // A tensor that nothing else holds gives its memory away, and takes it back.
        let mut data = [parameter, first, second].map(Tensor::into_data);
        let mut slices = data.each_mut().map(numbers);
        let [parameter, first, second] = &mut slices;
        let gradient = gradient.as_slice().expect("f32");
        cpu::adamw::step(parameter, gradient, [first, second], options);
        return data.map(|data| Tensor::from_data(data, (&device, DType::F32)));
    }
    crate::reference::adamw(parameter, gradient, moments, options)
}

#[cfg(feature = "flex")]
fn numbers(data: &mut TensorData) -> &mut [f32] {
    data.as_mut_slice().expect("f32, as the tensor is")
}

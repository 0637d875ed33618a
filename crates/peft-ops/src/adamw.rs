//! The optimizer's step.

#[cfg(feature = "flex")]
use burn::tensor::TensorData;
use burn::tensor::{DType, Tensor};

#[cfg(feature = "flex")]
use crate::{cpu, fuses};

/// Settings of a step of [`adamw`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// How much of the first moment stays, in [0, 1).
    pub beta_1: f32,
    /// How much of the second moment stays, in [0, 1).
    pub beta_2: f32,
    /// Beside the root of the second moment.
    pub epsilon: f32,
    /// Weight decay; times the learning rate it is the share that the parameter loses.
    pub weight_decay: f64,
    /// Learning rate.
    pub rate: f64,
    /// The step's number, from 1.
    pub time: i32,
}

impl AdamWOptions {
    pub(crate) fn corrections(&self) -> [f32; 2] {
        [self.beta_1, self.beta_2].map(|beta| 1.0 - beta.powi(self.time))
    }

    /// What is left of the parameter.
    pub(crate) fn kept(&self) -> f64 {
        1.0 - self.rate * self.weight_decay
    }
}

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

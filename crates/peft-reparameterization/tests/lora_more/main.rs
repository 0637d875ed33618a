//! LoRA's variants, its starts from data, and what acts on its gradients and on what it has learned, on a layer small
//! enough to compute all of it again.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::nn::{AdaptedForward as _, ForwardContext};

mod gradients;
mod intruders;
mod matrix;
mod nesting;
mod sampling;
mod starts;

/// One linear layer, called through its adapters.
#[derive(Module, Debug)]
struct Net {
    layer: Linear,
}

const D_IN: usize = 6;
const D_OUT: usize = 4;

impl Net {
    fn new(device: &Device) -> Self {
        let layer: Linear = LinearConfig::new(D_IN, D_OUT).init(device);
        Self {
            layer: Linear {
                weight: Param::from_tensor(wave([D_IN, D_OUT], 1, device)),
                ..layer
            },
        }
    }

    fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        self.layer.adapted_in(input, &ForwardContext::new())
    }
}

fn device() -> Device {
    peft_core::device::cpu_devices()[0].1.clone()
}

/// Numbers that are no pattern: sin(1.7 i² + phase).
fn wave(shape: [usize; 2], phase: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..shape[0] * shape[1])
        .map(|at| ((at * at) as f32 * 1.7 + phase as f32).sin())
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn inputs(device: &Device) -> Tensor<2> {
    wave([20, D_IN], 5, device)
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().iter().collect()
}

/// Refuses a distance of more than `most`.
#[track_caller]
fn assert_near<const D: usize>(ours: &Tensor<D>, theirs: &Tensor<D>, most: f64) {
    let distance = peft_testing::farthest(values(ours), values(theirs));
    assert!(distance <= most, "{distance}, more than {most}");
}

//! The memory of a training step with a sparse change: nothing of a weight's size.

use std::alloc::System;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use cap::Cap;
use peft_core::PeftModule as _;
use peft_core::nn::AdaptedForward as _;
use peft_selective::ShiraConfig;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

#[derive(Module, Debug)]
struct Net {
    query: Linear,
}

const WIDTH: usize = 2048;
const WEIGHT_BYTES: usize = 4 * WIDTH * WIDTH;
const ROWS: usize = 64;

fn net(device: &Device) -> Net {
    // Not drawn at random: that would take the memory of a second weight.
    let weight = Tensor::zeros([WIDTH, WIDTH], device);
    let query = Linear {
        weight: Param::from_tensor(weight),
        bias: None,
    };
    Net { query }
}

/// Steps of training; returns how far memory rose above what was there before.
fn trained(mut model: Net, device: &Device) -> usize {
    let before = ALLOCATOR.allocated();
    let mut optimizer = AdamWConfig::new().init();
    for step in 0..3 {
        let input = Tensor::<2>::ones([ROWS, WIDTH], device) * f64::from(step + 1);
        let loss = (model.query.adapted(input) - 1.0).square().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-2, model, gradients);
    }
    ALLOCATOR.max_allocated() - before
}

#[test]
fn no_gradient_of_the_weights_size_exists_in_training() {
    let flex = |(name, _): &(&str, Device)| *name == "flex";
    let Some((_, device)) = peft_core::device::cpu_devices().into_iter().find(flex) else {
        peft_testing::skip("the sparse product is for the backend `flex`");
        return;
    };
    let device = device.autodiff();
    let config = ShiraConfig::new(1)
        .with_targets(["query"])
        .with_random_seed(3);
    let model = net(&device).attach("a", &config).unwrap();
    assert_eq!(model.counts().trainable, 2 * WIDTH);
    // Inputs, outputs and their gradients are 64 of 2,048 rows: a thirty-second of the weight each. Whoever asks for more
    // is told that there is none, and the process ends.
    let limit = ALLOCATOR.allocated() + WEIGHT_BYTES / 2;
    ALLOCATOR.set_limit(limit).unwrap();
    trained(model.clone(), &device);
    ALLOCATOR.set_limit(usize::MAX).unwrap();
    // Composed, W' and its gradient are dense.
    peft_core::ops::set_fused(false);
    let composed = trained(model, &device);
    assert!(
        composed > 2 * WEIGHT_BYTES,
        "{composed} of {WEIGHT_BYTES} bytes"
    );
}

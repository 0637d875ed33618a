//! The limit of kept weights, which is one for the whole process: so this is a test program of its own, with one test.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Distribution, Tensor};
use peft_core::device::cpu_devices;
use peft_core::nn::AdaptedForward as _;
use peft_core::{PeftModule as _, kept_weights};
use peft_reparameterization::HiraConfig;

#[derive(Module, Debug)]
struct Net {
    layers: Vec<Linear>,
}

impl Net {
    fn forward(&self, x: &Tensor<2>) -> Tensor<2> {
        let layers = self.layers.iter();
        layers.fold(x.clone(), |x, layer| layer.adapted(x).tanh())
    }
}

#[test]
fn memory_beyond_the_limit_is_not_taken() {
    assert_eq!(kept_weights::limit(), 512 << 20);
    let layer = 4 * 16 * 16;
    for (backend, device) in cpu_devices() {
        let x = Tensor::<2>::random([3, 16], Distribution::Default, &device);
        let layers = (0..4).map(|_| LinearConfig::new(16, 16).init(&device));
        let base = Net {
            layers: layers.collect(),
        };
        let hira = HiraConfig::new(2)
            .with_init_weights(false)
            .with_targets("all-linear");
        // Its values are drawn now.
        base.forward(&x);
        let mut outputs = Vec::new();
        for (limit, expected) in [
            (0, 0),
            (layer - 1, 0),
            (2 * layer + 5, 2 * layer),
            (usize::MAX, 4 * layer),
        ] {
            kept_weights::set_limit(limit);
            device.seed(3);
            let model = base.attach("a", &hira).unwrap();
            let output = model.forward(&x).into_data();
            assert_eq!(model.forward(&x).into_data(), output, "{backend}, {limit}");
            assert_eq!(model.summary().kept_bytes, expected, "{backend}, {limit}");
            assert_eq!(kept_weights::bytes(), expected, "{backend}, {limit}");
            // Two models have the limit together.
            let other = base.attach("a", &hira).unwrap();
            other.forward(&x);
            let both = expected + other.summary().kept_bytes;
            assert!(both <= limit, "{backend}, {limit}");
            assert_eq!(kept_weights::bytes(), both, "{backend}, {limit}");
            drop(other);
            // What one gives back, another takes.
            drop(model);
            assert_eq!(kept_weights::bytes(), 0, "{backend}, {limit}");
            outputs.push(output);
        }
        for output in &outputs {
            assert_eq!(*output, outputs[0], "{backend}");
        }
    }
}

//! Methods that train parts of a weight's spectrum, on layers of all shapes.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor};
use peft_core::PeftModule;
use peft_core::device::cpu_devices;
use peft_core::nn::AdaptedForward;
use peft_core::state::AdapterState as _;
use peft_reparameterization::{OsfConfig, OsfLinear};
use peft_testing::farthest;

#[derive(Module, Debug)]
struct Net {
    wider: Linear,
    square: Linear,
    narrower: Linear,
}

impl Net {
    fn new(device: &Device) -> Self {
        Self {
            wider: LinearConfig::new(5, 8).init(device),
            square: LinearConfig::new(8, 8).init(device),
            narrower: LinearConfig::new(8, 3).with_bias(false).init(device),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.square.adapted(self.wider.adapted(x).tanh());
        self.narrower.adapted(x.tanh())
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// The plain gradient of `param` with its part in the span of `kept`, orthonormal rows, taken off.
fn without(gradient: Tensor<2>, kept: Tensor<2>) -> Tensor<2> {
    gradient.clone() - gradient.matmul(kept.clone().transpose()).matmul(kept)
}

#[test]
fn gradients_lose_what_lies_along_the_vectors_that_are_kept() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let net = Net::new(&device);
        let config = OsfConfig::new().with_effective_rank(2_usize);
        let model = net.attach("a", &config).unwrap();
        // Away from where it began.
        let model = model
            .edit_adapter::<OsfLinear>("a", |_, state| {
                let moved = |tensor: Tensor<2>| {
                    let noise = Distribution::Normal(0.0, 0.1);
                    let plain = tensor.clone().inner();
                    Tensor::from_inner(plain.clone() + plain.random_like(noise))
                };
                let map =
                    |param: &Param<Tensor<2>>| param.clone().map(|old| moved(old).require_grad());
                state.u_low = map(&state.u_low);
                state.v_low = map(&state.v_low);
            })
            .unwrap();
        let x = Tensor::random([6, 5], Distribution::Normal(0.0, 1.0), &device);
        let gradients = model.forward(x.clone()).square().sum().backward();
        // The same with weights that are leaves: W' = V diag(s) U for what is trained.
        let mut plain = net.clone();
        let states = model.adapter_states::<OsfLinear>("a").unwrap();
        assert_eq!(states.len(), 3);
        for (place, state) in &states {
            let layer = match place.as_str() {
                "wider" => &mut plain.wider,
                "square" => &mut plain.square,
                _ => &mut plain.narrower,
            };
            let weight = layer.weight.val().inner() + state.delta().inner();
            layer.weight = Param::from_tensor(Tensor::from_inner(weight));
        }
        let dense = plain.forward(x).square().sum().backward();
        for (place, state) in states {
            let (base, weight) = match place.as_str() {
                "wider" => (&net.wider, &plain.wider),
                "square" => (&net.square, &plain.square),
                _ => (&net.narrower, &plain.narrower),
            };
            let of_weight = weight.weight.val().grad(&dense).unwrap();
            let (u, v) = (state.u_low.val().inner(), state.v_low.val().inner());
            let s: Tensor<2> = state.s_low.val().inner().unsqueeze();
            // The kept vectors, by what the trained ones leave: of W without its small part.
            let small = (state.v_init.val().inner() * state.s_init.val().inner())
                .matmul(state.u_init.val().inner());
            let large = base.weight.val().inner() - small;
            let span = |matrix: Tensor<2>| {
                // Orthonormal rows with the span of a matrix of rank 2, by Gram and Schmidt.
                let first = matrix.clone().narrow(0, 0, 1);
                let first = first.clone() / first.square().sum().sqrt().unsqueeze();
                let second = without(matrix.narrow(0, 1, 1), first.clone());
                let second = second.clone() / second.square().sum().sqrt().unsqueeze();
                Tensor::cat(vec![first, second], 0)
            };
            let outputs = span(large.clone());
            let inputs = span(large.transpose());
            let of_u = (v * s.clone()).transpose().matmul(of_weight.clone());
            let of_v = of_weight.matmul((u * s.transpose()).transpose());
            for (found, expected) in [
                (&state.u_low, without(of_u, outputs)),
                (&state.v_low, without(of_v.transpose(), inputs).transpose()),
            ] {
                let found = values(found.val().grad(&gradients).unwrap());
                let far = farthest(found, values(expected));
                assert!(far < 1e-3, "{place} on {name}: {far}");
            }
        }
    }
}

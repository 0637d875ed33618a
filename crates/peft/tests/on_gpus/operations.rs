//! Operations with backward passes of their own, against the reference: outputs and every gradient.

use burn::tensor::{Distribution, Tensor, Tolerance};
use peft_core::device::cpu_devices;
use peft_core::ops::{AttentionOptions, LowRank, attention, linear_cross_entropy_with, reference};

#[test]
fn attention_is_the_reference() {
    for (name, device) in cpu_devices() {
        let random =
            |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        for (causal, kv_heads, mask) in [
            (true, 2, None),
            (false, 4, Some([3, 1, 7])),
            (true, 1, Some([3, 5, 7])),
        ] {
            let options = AttentionOptions {
                kv_heads,
                causal,
                ..AttentionOptions::new(4)
            };
            let mask = mask.map(random);
            let values = [[3, 5, 24], [3, 7, 6 * kv_heads], [3, 7, 6 * kv_heads]].map(random);
            let weights = random([3, 5, 24]);
            let run = |composed: bool| {
                let inputs = values.clone().map(|value| value.autodiff().require_grad());
                let [query, key, value] = inputs.clone();
                let mask = mask.clone().map(Tensor::autodiff);
                let output = if composed {
                    reference::attention(query, key, value, mask, options)
                } else {
                    attention(query, key, value, mask, options)
                };
                let loss = (output.clone() * weights.clone().autodiff()).sum();
                let gradients = loss.backward();
                let mut found = vec![output.into_data()];
                found.extend(inputs.map(|input| input.grad(&gradients).unwrap().into_data()));
                found
            };
            println!("{name}, causal {causal}, {kv_heads} heads of keys");
            for (found, expected) in run(false).iter().zip(&run(true)) {
                found.assert_approx_eq(expected, Tolerance::<f32>::rel_abs(1e-5, 1e-5));
            }
        }
    }
}

#[test]
fn cross_entropy_is_the_reference() {
    for (name, device) in cpu_devices() {
        let targets = [3, -1, 0, 10, 7, -5, 2];
        let random =
            |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        // Hidden states, head, A and B.
        let values = [[7, 6], [11, 6], [6, 2], [2, 11]].map(random);
        for trained in [[true; 4], [true, false, true, true]] {
            let run = |composed: bool| {
                let mut inputs = values.clone().map(Tensor::autodiff);
                for (input, trained) in inputs.iter_mut().zip(trained) {
                    *input = input.clone().set_require_grad(trained);
                }
                let [hidden, head, down, up] = inputs.clone();
                let loss = if composed {
                    let added = (hidden.clone().matmul(down) * 0.5).matmul(up);
                    reference::cross_entropy(hidden.matmul(head.transpose()) + added, &targets)
                } else {
                    let factors = LowRank {
                        down,
                        up,
                        scale: 0.5,
                        dropout: 0.0,
                    };
                    linear_cross_entropy_with(hidden, head, Some(factors), &targets)
                };
                let gradients = (loss.clone() * 0.5).backward();
                let mut found = vec![loss.into_data()];
                found.extend(
                    inputs
                        .iter()
                        .filter_map(|input| Some(input.grad(&gradients)?.into_data())),
                );
                found
            };
            let (found, expected) = (run(false), run(true));
            let count = trained.iter().filter(|trained| **trained).count();
            assert_eq!([found.len(), expected.len()], [1 + count; 2], "{name}");
            for (found, expected) in found.iter().zip(&expected) {
                found.assert_approx_eq(expected, Tolerance::<f32>::rel_abs(1e-5, 1e-5));
            }
        }
    }
}

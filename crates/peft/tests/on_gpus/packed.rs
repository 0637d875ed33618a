//! Packed matrices on a device: decoded as on the host, products with gradients, and nothing dense that stays.

use burn::tensor::quantization::QuantStore;
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData, Tolerance};
use peft_core::device::cpu_devices;
use peft_core::ops::quantized::QuantizedWeight;
use peft_core::ops::{LowRank, linear, linear_cross_entropy};
use peft_quantization::{BurnRows, BurnScheme, FourBit, FourBitKind, FourBitOptions};

fn values(count: usize) -> Vec<f32> {
    (0..count)
        .map(|index| (index as f32 * 0.731).sin() * (0.01 + (index % 13) as f32 * 0.01))
        .collect()
}

fn four_bit(shape: [usize; 2], options: FourBitOptions) -> QuantizedWeight {
    let values = values(shape[0] * shape[1]);
    QuantizedWeight::new(FourBit::quantize(&values, shape, options).unwrap())
}

fn integers(shape: [usize; 2], scheme: BurnScheme, block: Option<u8>) -> QuantizedWeight {
    let scheme = scheme.scheme(block, QuantStore::Native);
    let values = values(shape[0] * shape[1]);
    let flex = peft_core::device::device("flex").unwrap();
    QuantizedWeight::new(BurnRows::quantize(&values, shape, &scheme, &flex).unwrap())
}

/// Every format, of shapes that end within blocks and words.
fn matrices(shape: [usize; 2]) -> Vec<QuantizedWeight> {
    let options = FourBitOptions::new;
    vec![
        four_bit(shape, options(FourBitKind::Nf4)),
        four_bit(
            shape,
            options(FourBitKind::Nf4).with_double_quantization(true),
        ),
        four_bit(shape, options(FourBitKind::Fp4).with_block_size(32)),
        four_bit(
            shape,
            options(FourBitKind::Fp4)
                .with_block_size(128)
                .with_double_quantization(true),
        ),
        integers(shape, BurnScheme::Int8, Some(4)),
        integers(shape, BurnScheme::Int8, None),
        integers(shape, BurnScheme::Int4, Some(4)),
        integers(shape, BurnScheme::Int4, None),
    ]
}

fn on_host(weight: &QuantizedWeight) -> TensorData {
    let shape = weight.shape();
    let mut values = vec![0.0; shape[0] * shape[1]];
    weight.decode(0, &mut values);
    TensorData::new(values, shape)
}

#[test]
fn every_format_is_decoded_as_on_the_host() {
    for (name, device) in cpu_devices() {
        for shape in [[33, 20], [300, 64]] {
            for weight in matrices(shape) {
                let format = weight.format().to_owned();
                assert!(weight.packed().is_some(), "{format}");
                let expected = on_host(&weight);
                for device in [device.clone(), device.clone().autodiff()] {
                    let found = weight.to_tensor(&device);
                    assert_eq!(found.is_autodiff(), device.is_autodiff());
                    println!("{name}, {format}, {shape:?}");
                    found
                        .into_data()
                        .assert_approx_eq(&expected, Tolerance::<f32>::rel_abs(1e-6, 1e-9));
                }
            }
        }
    }
}

#[test]
fn some_rows_are_those_of_the_matrix() {
    for (_, device) in cpu_devices() {
        for weight in matrices([33, 20]) {
            let ids = Tensor::<2, Int>::from_data([[32, 0, 7], [7, 1, 31]], &device);
            let found = weight.select(ids, &device);
            assert_eq!(found.dims(), [2, 3, 20]);
            let all = weight.to_tensor(&device);
            let rows: Vec<Tensor<2>> = [32, 0, 7, 7, 1, 31]
                .map(|row| all.clone().narrow(0, row, 1))
                .to_vec();
            let expected = Tensor::cat(rows, 0).reshape([2, 3, 20]);
            let expected: Tensor<3> = expected;
            found
                .into_data()
                .assert_approx_eq(&expected.into_data(), Tolerance::<f32>::absolute(1e-9));
        }
    }
}

/// Outputs and gradients of a layer and of a loss: those of the dense matrix.
#[test]
fn products_are_those_of_the_decoded_matrix() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        for weight in matrices([24, 20]) {
            let dense = Tensor::<2>::from_data(on_host(&weight), &device).transpose();
            let random = |shape: [usize; 2]| {
                Tensor::<2>::random(
                    shape,
                    Distribution::Normal(0.0, 1.0),
                    &device.clone().without_autodiff(),
                )
            };
            let parts = [random([14, 20]), random([20, 3]), random([3, 24])];
            let bias = random([1, 24]);
            let run = |packed: bool| {
                let [x, down, up] = parts.clone().map(|part| part.autodiff().require_grad());
                let bias = bias.clone().autodiff().reshape([24]);
                let low_rank = LowRank {
                    down: down.clone(),
                    up: up.clone(),
                    scale: 0.5,
                    dropout: 0.0,
                };
                let input = x.clone().reshape([2, 7, 20]);
                let input: Tensor<3> = input;
                let output = if packed {
                    linear(input, weight.clone(), Some(bias), Some(low_rank))
                } else {
                    linear(input, dense.clone(), Some(bias), Some(low_rank))
                };
                let grads = output.clone().powi_scalar(2).sum().backward();
                let gradients = [x, down, up].map(|part| part.grad(&grads).unwrap().into_data());
                (output.into_data(), gradients)
            };
            let (output, gradients) = run(true);
            let (expected, expected_gradients) = run(false);
            println!("{name}, {}", weight.format());
            let close = Tolerance::<f32>::rel_abs(1e-4, 1e-4);
            output.assert_approx_eq(&expected, close);
            for (found, expected) in gradients.iter().zip(&expected_gradients) {
                found.assert_approx_eq(expected, close);
            }
            let targets: Vec<i64> = (0..14).map(|row| row % 24).collect();
            let loss = |packed: bool| {
                let hidden = parts[0].clone().autodiff().require_grad();
                let loss = if packed {
                    linear_cross_entropy(hidden.clone(), weight.clone(), &targets)
                } else {
                    linear_cross_entropy(hidden.clone(), dense.clone().transpose(), &targets)
                };
                let grads = loss.clone().backward();
                [loss.into_data(), hidden.grad(&grads).unwrap().into_data()]
            };
            for (found, expected) in loss(true).iter().zip(&loss(false)) {
                found.assert_approx_eq(expected, close);
            }
        }
    }
}

/// Bytes that a device's allocator has given out, when everything is done.
fn in_use(device: &Device) -> Option<u64> {
    device.sync().unwrap();
    Some(device.memory_pool_usage()?.bytes_in_use)
}

/// After a forward pass that has its graph, and after the backward pass, a matrix takes what its codes and scales take.
#[test]
fn no_dense_copy_stays() {
    for (name, device) in cpu_devices() {
        let Some(_) = in_use(&device) else { continue };
        let shape = [512, 1024];
        let dense = (shape[0] * shape[1] * 4) as u64;
        let weight = four_bit(shape, FourBitOptions::new(FourBitKind::Nf4));
        let before = in_use(&device).unwrap();
        let x = Tensor::<2>::ones([2, shape[1]], (&device, DType::F32))
            .autodiff()
            .require_grad();
        let output = linear(x.clone(), weight.clone(), None, None);
        let loss = output.sum();
        let forward = in_use(&device).unwrap() - before;
        let grads = loss.backward();
        let gradient = x.grad(&grads).unwrap();
        let backward = in_use(&device).unwrap() - before;
        assert!(gradient.sum().into_scalar::<f32>().is_finite());
        let packed = weight.bytes() as u64;
        println!(
            "{name}: dense {dense}, packed {packed}, after forward {forward}, after backward {backward}"
        );
        for used in [forward, backward] {
            assert!(
                used >= packed && used < packed + dense / 8,
                "{name}: {used} bytes"
            );
        }
    }
}

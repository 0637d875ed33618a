//! Fused operations in mixed precision against their references. The setting is the whole process's, so these tests
//! have a process of their own.

#![cfg(feature = "flex")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use peft_ops::quantized::{QuantizedMatrix, QuantizedWeight};
use peft_ops::{
    AttentionInputs, AttentionOptions, LowRank, MixedPrecision, Weight, bf16_unit, linear,
    linear_cross_entropy, linear_of_attention, linear_of_gelu, linear_of_rms_norm,
    linear_of_swiglu, mixed_precision, reference, set_bf16_unit, set_mixed_precision,
};
use proptest::prelude::*;

static ALONE: Mutex<()> = Mutex::new(());

/// Mixed precision, for as long as it is held.
struct Mixed(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Mixed {
    fn new() -> Self {
        let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        set_mixed_precision(MixedPrecision::Bf16);
        Self(guard)
    }
}

impl Drop for Mixed {
    fn drop(&mut self) {
        set_bf16_unit(true);
        set_mixed_precision(MixedPrecision::Off);
    }
}

/// Numbers that bfloat16 has, so that rounding changes nothing.
fn exact<const D: usize>(shape: [usize; D], seed: u64, trained: bool) -> Tensor<D> {
    let values = (0..shape.iter().product::<usize>() as u64)
        .map(|index| {
            let mixed = (index ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((mixed >> 40) % 255) as f32 / 64.0 - 2.0
        })
        .collect::<Vec<_>>();
    let tensor = Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff());
    if trained {
        tensor.require_grad()
    } else {
        tensor
    }
}

/// Rows of eighths, computed when they are wanted.
#[derive(Debug)]
struct Eighths([usize; 2]);

impl QuantizedMatrix for Eighths {
    fn shape(&self) -> [usize; 2] {
        self.0
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        for (index, value) in values.iter_mut().enumerate() {
            let (row, column) = (first + index / self.0[1], index % self.0[1]);
            // No two rows are alike, but for very tall matrices.
            *value = ((row * row + 5 * row + 37 * column) % 31) as f32 / 8.0 - 2.0;
        }
    }

    fn bytes(&self) -> usize {
        0
    }

    fn format(&self) -> &'static str {
        "eighths"
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// The same rows, stored in bfloat16.
#[derive(Debug)]
struct Halves(Eighths, Vec<u16>);

impl Halves {
    fn new(shape: [usize; 2]) -> Self {
        let mut values = vec![0.0_f32; shape[0] * shape[1]];
        Eighths(shape).decode(0, &mut values);
        let bits = values.iter().map(|value| (value.to_bits() >> 16) as u16);
        Self(Eighths(shape), bits.collect())
    }
}

impl QuantizedMatrix for Halves {
    fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        self.0.decode(first, values);
    }

    fn bfloat16(&self) -> Option<&[u16]> {
        Some(&self.1)
    }

    fn bytes(&self) -> usize {
        2 * self.1.len()
    }

    fn format(&self) -> &'static str {
        "halves"
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Inputs of a layer.
struct Inputs {
    x: Tensor<3>,
    other: Tensor<3>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    down: Tensor<2>,
    up: Tensor<2>,
}

/// Sizes of a layer: items, rows of each, inputs, outputs, rank.
type Sizes = [usize; 5];

impl Inputs {
    fn new(
        [batch, seq, d_in, d_out, rank]: Sizes,
        trains: bool,
        weight: Tensor<2>,
        seed: u64,
    ) -> Self {
        Self {
            x: exact([batch, seq, d_in], seed, trains),
            other: exact([batch, seq, d_in], seed ^ 1, trains),
            weight,
            bias: exact([d_out], seed ^ 3, true),
            down: exact([d_in, rank], seed ^ 4, true),
            up: exact([rank, d_out], seed ^ 5, true),
        }
    }

    fn bias(&self) -> Tensor<1> {
        self.bias.clone()
    }

    fn low_rank(&self) -> LowRank {
        LowRank::new(self.down.clone(), self.up.clone(), 0.5)
    }

    /// The reference of a layer that sees this.
    fn layer(&self, seen: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
        reference::linear(seen, weight, Some(self.bias()), Some(self.low_rank()))
    }

    /// The output and all gradients of a layer of these, by name.
    fn pass(
        self,
        layer: impl FnOnce(&Self) -> Tensor<3>,
    ) -> Vec<(&'static str, Option<TensorData>)> {
        let output = layer(&self);
        let weights = exact(output.dims(), 99, false);
        let values = output.clone().into_data();
        let g = (output * weights).sum().backward();
        vec![
            ("output", Some(values)),
            ("x", self.x.grad(&g).map(Tensor::into_data)),
            ("other", self.other.grad(&g).map(Tensor::into_data)),
            ("weight", self.weight.grad(&g).map(Tensor::into_data)),
            ("bias", self.bias.grad(&g).map(Tensor::into_data)),
            ("down", self.down.grad(&g).map(Tensor::into_data)),
            ("up", self.up.grad(&g).map(Tensor::into_data)),
        ]
    }
}

/// How far two layers' outputs and gradients are apart, each over its largest value: the farthest.
fn apart(
    inputs: impl Fn() -> Inputs,
    found: impl FnOnce(&Inputs) -> Tensor<3>,
    expected: impl FnOnce(&Inputs) -> Tensor<3>,
) -> f64 {
    let (found, expected) = (inputs().pass(found), inputs().pass(expected));
    let mut farthest = 0.0_f64;
    for ((name, found), (_, expected)) in found.into_iter().zip(expected) {
        assert_eq!(found.is_some(), expected.is_some(), "gradient of {name}");
        if let (Some(found), Some(expected)) = (found, expected) {
            // Inputs are of the order of 1; where the largest has itself cancelled, a share of that.
            let largest = peft_testing::largest(expected.iter::<f64>().chain([1.0]));
            let error = peft_testing::farthest(found.iter::<f64>(), expected.iter::<f64>());
            farthest = farthest.max(error / largest);
        }
    }
    farthest
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn layers_are_their_references(
        batch in 1_usize..4, seq in 1_usize..90, d_in in 1_usize..70, d_out in 1_usize..70, rank in 1_usize..9,
        trains_input: bool, trains_weight: bool, unit: bool, seed: u64,
    ) {
        let _mixed = Mixed::new();
        set_bf16_unit(unit);
        let sizes = [batch, seq, d_in, d_out, rank];
        let frozen = exact([d_in, d_out], seed ^ 2, false);
        let weight = || if trains_weight { exact([d_in, d_out], seed ^ 2, true) } else { frozen.clone() };
        let inputs = || Inputs::new(sizes, trains_input, weight(), seed);
        // Everything that is rounded has 8 bits: only the order of sums differs. A frozen weight is seen thrice: read,
        // then packed, then shared.
        for _ in 0..3 {
            let error = apart(
                inputs,
                |i| linear(i.x.clone(), i.weight.clone(), Some(i.bias()), Some(i.low_rank())),
                |i| i.layer(i.x.clone(), i.weight.clone()),
            );
            prop_assert!(error < 1e-5, "{error}");
        }
        for (name, rows) in [
            ("decoded", QuantizedWeight::new(Eighths([d_out, d_in]))),
            ("in bfloat16", QuantizedWeight::new(Halves::new([d_out, d_in]))),
        ] {
            let error = apart(
                inputs,
                |i| linear(i.x.clone(), Weight::Quantized(rows.clone()), Some(i.bias()), Some(i.low_rank())),
                |i| i.layer(i.x.clone(), rows.to_tensor(&i.x.device()).transpose()),
            );
            prop_assert!(error < 1e-5, "{name}: {error}");
        }
    }

    /// What these layers see has more than 8 bits, so it is rounded.
    #[test]
    fn layers_of_activations_are_within_rounding(
        batch in 1_usize..4, seq in 1_usize..60, heads in 1_usize..4, d_out in 1_usize..50, rank in 1_usize..5,
        trains_input: bool, seed: u64,
    ) {
        let _mixed = Mixed::new();
        let d_in = 8 * heads;
        let inputs = || {
            let weight = exact([d_in, d_out], seed ^ 2, false);
            Inputs::new([batch, seq, d_in, d_out, rank], trains_input, weight, seed)
        };
        let gamma = || exact([d_in], seed ^ 6, false);
        let options = AttentionOptions::new(heads);
        let of_gelu = apart(
            inputs,
            |i| linear_of_gelu(i.x.clone(), i.weight.clone(), Some(i.bias()), Some(i.low_rank())),
            |i| i.layer(reference::gelu(i.x.clone()), i.weight.clone()),
        );
        let of_swiglu = apart(
            inputs,
            |i| linear_of_swiglu(i.x.clone(), i.other.clone(), i.weight.clone(), Some(i.bias()), Some(i.low_rank())),
            |i| i.layer(reference::swiglu(i.x.clone(), i.other.clone()), i.weight.clone()),
        );
        let of_norm = apart(
            inputs,
            |i| linear_of_rms_norm(i.x.clone(), gamma(), 1e-3, i.weight.clone(), Some(i.bias()), Some(i.low_rank())),
            |i| i.layer(reference::rms_norm(i.x.clone(), gamma(), 1e-3), i.weight.clone()),
        );
        let of_attention = apart(
            inputs,
            |i| {
                let inputs = AttentionInputs {
                    query: i.x.clone(), key: i.other.clone(), value: i.x.clone(), mask: None, segments: None, options,
                };
                linear_of_attention(inputs, i.weight.clone(), Some(i.bias()), Some(i.low_rank()))
            },
            |i| {
                let attended = reference::attention(i.x.clone(), i.other.clone(), i.x.clone(), None, options);
                i.layer(attended, i.weight.clone())
            },
        );
        for error in [of_gelu, of_swiglu, of_norm, of_attention] {
            prop_assert!(error < 2e-2, "{of_gelu} {of_swiglu} {of_norm} {of_attention}");
        }
    }

    #[test]
    fn losses_are_within_rounding(
        rows in 16_usize..60, d in 1_usize..50, classes in 2_usize..300, of_table: bool, halves: bool, unit: bool,
        seed: u64,
    ) {
        let _mixed = Mixed::new();
        set_bf16_unit(unit);
        let targets: Vec<i64> = (0..rows as i64).map(|row| (row * 7) % (classes as i64 + 1) - 1).collect();
        let head = exact([classes, d], seed ^ 1, false) * 0.125;
        let table = if halves {
            QuantizedWeight::new(Halves::new([classes, d]))
        } else {
            QuantizedWeight::new(Eighths([classes, d]))
        };
        let pass = |fused: bool| {
            let hidden = exact([rows, d], seed, true);
            let dense = if of_table { table.to_tensor(&hidden.device()) } else { head.clone() };
            let loss = match (fused, of_table) {
                (true, true) => linear_cross_entropy(hidden.clone(), table.clone(), &targets),
                (true, false) => linear_cross_entropy(hidden.clone(), dense, &targets),
                (false, _) => reference::linear_cross_entropy(hidden.clone(), dense, &targets),
            };
            let gradient = hidden.grad(&loss.backward()).unwrap().into_data();
            (loss.into_scalar::<f32>(), gradient)
        };
        let (expected_loss, expected) = pass(false);
        for _ in 0..3 {
            let (loss, gradient) = pass(true);
            // Logits are exact: their sides have 8 bits.
            prop_assert!((loss - expected_loss).abs() <= 1e-4 * expected_loss.abs().max(1.0), "{loss} {expected_loss}");
            let error = peft_testing::farthest(gradient.iter::<f64>(), expected.iter::<f64>());
            // The logits' gradients of a row, whose absolute values add up to 2 at most, are rounded by a 256th at
            // most, and the head's elements are 2 at most.
            prop_assert!(error <= 2.0 * 2.0 / 256.0 + 1e-4, "{error}");
        }
    }
}

#[test]
fn only_with_the_setting_are_numbers_rounded() {
    let device = Device::flex();
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &device);
    let (x, weight) = (random([64, 200]), random([200, 90]));
    let run = || linear(x.clone(), weight.clone(), None, None).into_data();
    let mixed = Mixed::new();
    assert_eq!(mixed_precision(), MixedPrecision::Bf16);
    let rounded = [run(), run(), run()];
    set_bf16_unit(false);
    assert_eq!(bf16_unit(), None);
    let portable = run();
    drop(mixed);
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(mixed_precision(), MixedPrecision::Off);
    let exact = run();
    let expected = reference::linear(x.clone(), weight.clone(), None, None).into_data();
    drop(guard);
    let error =
        |a: &TensorData, b: &TensorData| peft_testing::farthest(a.iter::<f64>(), b.iter::<f64>());
    let largest = peft_testing::largest(exact.iter::<f64>());
    assert!(error(&exact, &expected) < 1e-5 * largest);
    for rounded in &rounded {
        let far = error(rounded, &exact) / largest;
        assert!(far > 1e-5 && far < 1e-2, "{far}");
        assert!(error(rounded, &portable) < 1e-5 * largest);
    }
}

#[test]
fn a_weight_that_changes_is_rounded_again() {
    let _mixed = Mixed::new();
    let device = Device::flex();
    let x = Tensor::<2>::ones([20, 30], &device);
    let mut weight = Tensor::<2>::ones([30, 10], &device);
    for step in 0..5 {
        for _ in 0..3 {
            let largest: f32 = linear(x.clone(), weight.clone(), None, None)
                .max()
                .into_scalar();
            assert!(
                (largest - 30.0 * 2_f32.powi(step)).abs() < 1e-4,
                "{largest} in step {step}"
            );
        }
        // In place, as nothing else holds the tensor.
        weight = weight * 2.0;
    }
}

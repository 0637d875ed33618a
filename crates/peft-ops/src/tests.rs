//! Every fused operation against its reference: outputs, and the gradient of every input, for every
//! choice of inputs that are trained.

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use proptest::prelude::*;

use crate::cpu::dropout::Coins;
use crate::extension::Fused;
use crate::{AttentionOptions, LowRank, reference};

/// Largest deviation, as a share of the largest value.
const TOLERANCE: f64 = 1e-5;

fn device() -> Device {
    Device::flex().autodiff()
}

/// Numbers that depend on the seed only.
fn data(shape: &[usize], seed: u64) -> TensorData {
    let len: usize = shape.iter().product();
    let numbers: Vec<f32> = (0..len)
        .map(|i| {
            let bits = crate::cpu::math::coin(seed, i);
            // A sum of four uniforms: bell-like, and never far off.
            let sum: u32 = bits.to_le_bytes().map(u32::from).iter().sum();
            (sum as f32 - 510.0) / 148.0
        })
        .collect();
    TensorData::new(numbers, shape)
}

/// An input; leaves that are trained say so.
fn input<const D: usize>(shape: [usize; D], seed: u64, trained: bool) -> Tensor<D> {
    let tensor = Tensor::from_data(data(&shape, seed), &device());
    if trained {
        tensor.require_grad()
    } else {
        tensor
    }
}

fn close(what: &str, found: &TensorData, expected: &TensorData) -> Result<(), TestCaseError> {
    close_within(TOLERANCE, what, found, expected)
}

/// As [`close`], where the inputs have another condition than most.
fn close_within(
    tolerance: f64,
    what: &str,
    found: &TensorData,
    expected: &TensorData,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.shape(), expected.shape(), "{}", what);
    // Inputs are of the order of 1; where the largest has itself cancelled, a share of that.
    let largest = peft_testing::largest(expected.iter::<f64>().chain([1.0]));
    let error = peft_testing::farthest(found.iter::<f64>(), expected.iter::<f64>());
    prop_assert!(
        error <= tolerance * largest,
        "{}: {} apart (largest {})",
        what,
        error,
        largest
    );
    Ok(())
}

/// What two right norms of the same rows may differ by. A norm subtracts the mean and divides by
/// the spread: numbers that lie near to one another lose digits in any order of summing.
fn tolerance_of_norm(rows: &Tensor<3>, epsilon: f64) -> f64 {
    let width = rows.dims()[2];
    let values: Vec<f64> = rows.to_data().iter().collect();
    let condition = values.chunks(width).map(|row| {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let largest = row.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        largest / (variance + epsilon).sqrt()
    });
    // A few roundings of the largest number, relative to the spread.
    let roundings = 8.0 * f64::from(f32::EPSILON);
    condition.fold(TOLERANCE, |tolerance, condition| {
        tolerance.max(roundings * condition)
    })
}

/// Inputs of one operation, by name; rank is whatever it is.
macro_rules! compare {
    ($inputs:expr, [$($name:ident),*], $fused:expr, $reference:expr) => {
        compare!(TOLERANCE, $inputs, [$($name),*], $fused, $reference)
    };
    ($tolerance:expr, $inputs:expr, [$($name:ident),*], $fused:expr, $reference:expr) => {{
        // Weighted, so that no two output elements have the same gradient.
        let pass = |output: Tensor<3>| {
            let weights = Tensor::<3>::from_data(data(&output.dims(), 99), &device());
            let values = output.clone().into_data();
            (values, (output * weights).sum().backward())
        };
        let ($($name,)*) = $inputs;
        let (found, found_gradients) = pass($fused);
        let found_gradients = [$((stringify!($name), $name.grad(&found_gradients).map(Tensor::into_data))),*];
        let ($($name,)*) = $inputs;
        let (expected, gradients) = pass($reference);
        let gradients = [$($name.grad(&gradients).map(Tensor::into_data)),*];
        close_within($tolerance, "output", &found, &expected)?;
        for ((name, found), expected) in found_gradients.iter().zip(&gradients) {
            prop_assert_eq!(found.is_some(), expected.is_some(), "gradient of {}", name);
            if let (Some(found), Some(expected)) = (found, expected) {
                close_within($tolerance, &format!("gradient of {name}"), found, expected)?;
            }
        }
    }};
}

/// Environment variables may ask for more cases.
fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        asked.cases
    } else {
        64
    };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..asked
    }
}

/// Something must be trained, or there is no backward pass.
fn any_of(trained: [bool; 5]) -> [bool; 5] {
    if trained.contains(&true) {
        trained
    } else {
        [true, false, false, false, false]
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn linear_is_its_reference(
        batch in 1_usize..4, seq in 1_usize..120, d_in in 1_usize..70, d_out in 1_usize..70,
        rank in 1_usize..9, scale in -2.0_f64..2.0, with_bias: bool, with_factors: bool, of_gelu: bool,
        trained: [bool; 5], seed: u64,
    ) {
        let mut trained = any_of(trained);
        trained[0] |= !(trained[1] || with_bias && trained[2] || with_factors && (trained[3] || trained[4]));
        let inputs = || (
            input([batch, seq, d_in], seed, trained[0]),
            input([d_in, d_out], seed ^ 1, trained[1]),
            input([d_out], seed ^ 2, trained[2] && with_bias),
            input([d_in, rank], seed ^ 3, trained[3] && with_factors),
            input([rank, d_out], seed ^ 4, trained[4] && with_factors),
        );
        let extras = |bias: &Tensor<1>, down: &Tensor<2>, up: &Tensor<2>| (
            with_bias.then(|| bias.clone()),
            with_factors.then(|| LowRank { down: down.clone(), up: up.clone(), scale, dropout: 0.0 }),
        );
        compare!(inputs(), [x, weight, bias, down, up], {
            let (bias, low_rank) = extras(&bias, &down, &up);
            let fused = if of_gelu { crate::linear_of_gelu } else { crate::linear };
            fused(x.clone(), weight.clone(), bias, low_rank)
        }, {
            let (bias, low_rank) = extras(&bias, &down, &up);
            let x = if of_gelu { reference::gelu(x.clone()) } else { x.clone() };
            reference::linear(x, weight.clone(), bias, low_rank)
        });
    }

    #[test]
    fn a_low_rank_addition_is_its_reference(
        rows in 1_usize..60, d_in in 1_usize..40, d_out in 1_usize..40, rank in 1_usize..9,
        trained: [bool; 5], seed: u64,
    ) {
        let trained = any_of(trained);
        let trained = if trained[..4].contains(&true) { trained } else { [true; 5] };
        let inputs = || (
            input([1, rows, d_out], seed, trained[0]),
            input([1, rows, d_in], seed ^ 1, trained[1]),
            input([d_in, rank], seed ^ 2, trained[2]),
            input([rank, d_out], seed ^ 3, trained[3]),
        );
        let factors = |down: &Tensor<2>, up: &Tensor<2>| LowRank { down: down.clone(), up: up.clone(), scale: 0.7, dropout: 0.0 };
        compare!(inputs(), [y, x, down, up],
            crate::add_low_rank(y.clone(), x.clone(), factors(&down, &up)),
            reference::add_low_rank(y.clone(), x.clone(), factors(&down, &up)));
    }

    #[test]
    fn gelu_is_its_reference(shape in [1_usize..4, 1_usize..50, 1_usize..200], seed: u64, size in 0.1_f64..8.0) {
        let inputs = || (input(shape, seed, true),);
        compare!(inputs(), [x], crate::gelu(x.clone() * size), reference::gelu(x.clone() * size));
    }

    #[test]
    fn layer_norm_is_its_reference(
        batch in 1_usize..4, seq in 1_usize..40, width in 4_usize..100, offset in -3.0_f64..3.0,
        with_residual: bool, with_beta: bool, trained: [bool; 5], seed: u64,
    ) {
        let mut trained = any_of(trained);
        trained[0] |= !(trained[2] || with_residual && trained[1] || with_beta && trained[3]);
        let inputs = || (
            input([batch, seq, width], seed, trained[0]),
            input([batch, seq, width], seed ^ 1, trained[1] && with_residual),
            input([width], seed ^ 2, trained[2]),
            input([width], seed ^ 3, trained[3] && with_beta),
        );
        let (x, residual, ..) = inputs();
        let rows = x + offset;
        let rows = if with_residual { rows + residual } else { rows };
        compare!(tolerance_of_norm(&rows, 1e-3), inputs(), [x, residual, gamma, beta], {
            let (r, b) = (with_residual.then(|| residual.clone()), with_beta.then(|| beta.clone()));
            crate::layer_norm(x.clone() + offset, r, gamma.clone(), b, 1e-3, 0.0)
        }, {
            let (r, b) = (with_residual.then(|| residual.clone()), with_beta.then(|| beta.clone()));
            reference::layer_norm(x.clone() + offset, r, gamma.clone(), b, 1e-3)
        });
    }

    #[test]
    fn attention_is_its_reference(
        batch in 1_usize..4, queries in 1_usize..150, more in 0_usize..20, kv_heads in 1_usize..4,
        group in 1_usize..4, width in 1_usize..20, causal: bool, mask_rows in 0_usize..3,
        scale in prop::option::of(0.1_f64..2.0), trained: [bool; 5], seed: u64,
    ) {
        let trained = if trained[..3].contains(&true) { trained } else { [true; 5] };
        let (keys, heads) = (queries + more, kv_heads * group);
        let options = AttentionOptions { heads, kv_heads, causal, dropout: 0.0, scale };
        let inputs = || (
            input([batch, queries, heads * width], seed, trained[0]),
            input([batch, keys, kv_heads * width], seed ^ 1, trained[1]),
            input([batch, keys, kv_heads * width], seed ^ 2, trained[2]),
        );
        let mask = || match mask_rows {
            0 => None,
            rows => {
                let rows = if rows == 1 { 1 } else { queries };
                let numbers = input([batch, rows, keys], seed ^ 3, false);
                // Some keys are hidden, but never a query's own.
                let hidden = numbers.clone().greater_elem(1.5);
                let hidden = if causal { hidden.clone().bool_and(hidden.bool_not()) } else { hidden };
                Some(numbers.mask_fill(hidden, f32::MIN))
            }
        };
        compare!(inputs(), [query, key, value],
            crate::attention(query.clone(), key.clone(), value.clone(), mask(), options),
            reference::attention(query.clone(), key.clone(), value.clone(), mask(), options));
        // Without autodiff, against Burn's own fused operation.
        let (query, key, value) = inputs();
        let plain = |t: Tensor<3>| t.without_autodiff();
        let run = |attend: fn(Tensor<3>, Tensor<3>, Tensor<3>, Option<Tensor<3>>, AttentionOptions) -> Tensor<3>| {
            attend(plain(query.clone()), plain(key.clone()), plain(value.clone()), mask().map(plain), options).into_data()
        };
        close("inference", &run(crate::attention), &run(reference::attention))?;
    }

    /// Dropout's coins are functions of seed and place, so the reference can be given the same.
    #[test]
    fn dropout_has_the_same_coins_in_both_passes(
        batch in 1_usize..4, seq in 1_usize..30, heads in 1_usize..4, width in 4_usize..12,
        rate in 0.05_f64..0.9, seed: u64,
    ) {
        use burn::backend::Dispatch;
        let coins = Coins::new(rate, seed);
        let factors = |shape: &[usize]| {
            let len = shape.iter().product();
            let factors: Vec<f32> = (0..len).map(|i| coins.factor(i)).collect();
            TensorData::new(factors, shape)
        };
        let wide = heads * width;
        let shape = [batch, seq, wide];
        let kept = Tensor::<3>::from_data(factors(&shape), &device());
        let inputs = || (input(shape, seed, true),);
        compare!(inputs(), [x],
            Tensor::<3>::from_dispatch(<Dispatch as Fused>::dropout(x.clone().into_dispatch(), coins)),
            x.clone() * kept.clone());
        let inputs = || (input(shape, seed, true), input(shape, seed ^ 1, true), input([wide], seed ^ 2, true));
        compare!(inputs(), [x, residual, gamma],
            Tensor::<3>::from_dispatch(<Dispatch as Fused>::layer_norm(
                x.clone().into_dispatch(), Some(residual.clone().into_dispatch()).into(),
                gamma.clone().into_dispatch(), None.into(), 1e-3, Some(coins),
            )),
            reference::layer_norm(x.clone() * kept.clone(), Some(residual.clone()), gamma.clone(), None, 1e-3));
        // A low-rank addition drops what A sees, and the weight sees all; so after GELU, and with a quantized weight.
        let inputs = || (
            input(shape, seed, true), input([wide, 5], seed ^ 1, true), input([wide, 3], seed ^ 2, true),
            input([3, 5], seed ^ 3, true),
        );
        let rows = decoder::quantized([5, wide], seed ^ 4);
        for (gelu, is_packed) in [(false, false), (true, false), (false, true), (true, true)] {
            let layer = || crate::extension::Layer {
                scale: 0.7, gelu, epsilon: 0.0, coins: Some(coins), quantized: is_packed.then(|| rows.clone()),
                precision: crate::MixedPrecision::Off,
            };
            compare!(inputs(), [x, w, a, b],
                Tensor::<3>::from_dispatch(<Dispatch as Fused>::linear(
                    x.clone().into_dispatch(), None.into(), None.into(),
                    (!is_packed).then(|| w.clone().into_dispatch()).into(), None.into(),
                    Some(a.clone().into_dispatch()).into(), Some(b.clone().into_dispatch()).into(), layer(),
                )) + w.clone().sum().reshape([1, 1, 1]) * 0.01,
                {
                    let seen = if gelu { reference::gelu(x.clone()) } else { x.clone() };
                    let weight = if is_packed { rows.to_tensor(&device()).transpose() } else { w.clone() };
                    let dropped = seen.clone() * kept.clone();
                    let added = dropped.matmul(a.clone().unsqueeze()).matmul(b.clone().unsqueeze()) * 0.7;
                    seen.matmul(weight.unsqueeze()) + added + w.clone().sum().reshape([1, 1, 1]) * 0.01
                });
        }
        let inputs = || (
            input([batch, seq, 5], seed ^ 1, true), input(shape, seed, true), input([wide, 3], seed ^ 2, true),
            input([3, 5], seed ^ 3, true),
        );
        compare!(inputs(), [y, x, a, b],
            Tensor::<3>::from_dispatch(<Dispatch as Fused>::add_low_rank(
                y.clone().into_dispatch(), x.clone().into_dispatch(), a.clone().into_dispatch(),
                b.clone().into_dispatch(), 0.7, Some(coins),
            )),
            {
                let dropped = x.clone() * kept.clone();
                y.clone() + dropped.matmul(a.clone().unsqueeze()).matmul(b.clone().unsqueeze()) * 0.7
            });
        // Attention's coins: one for each weight, [batch, heads, queries, keys].
        let kept = Tensor::<4>::from_data(factors(&[batch, heads, seq, seq]), &device());
        let split = |x: Tensor<3>| x.reshape([batch, seq, heads, width]).swap_dims(1, 2);
        let settings = crate::cpu::attention::Attention {
            batch, queries: seq, keys: seq, heads, kv_heads: heads, width,
            scale: 0.5, causal: false, coins: Some(coins), rounded: false,
        };
        let inputs = || (input(shape, seed, true), input(shape, seed ^ 1, true), input(shape, seed ^ 2, true));
        compare!(inputs(), [query, key, value],
            Tensor::<3>::from_dispatch(<Dispatch as Fused>::attention(
                query.clone().into_dispatch(), key.clone().into_dispatch(), value.clone().into_dispatch(),
                None.into(), None, settings,
            )),
            {
                let scores = split(query.clone()).matmul(split(key.clone()).transpose()) * 0.5;
                let weights = burn::tensor::activation::softmax(scores, 3) * kept.clone();
                weights.matmul(split(value.clone())).swap_dims(1, 2).reshape(shape)
            });
    }
}

/// Sizes at which work is split among threads and into blocks.
fn large_inputs_are_split() -> Result<(), TestCaseError> {
    let (seq, d_in, d_out, rank) = (1030, 20, 24, 3);
    for of_gelu in [false, true] {
        let inputs = || {
            (
                input([3, seq, d_in], 1, true),
                input([d_in, d_out], 2, true),
                input([d_out], 3, true),
                input([d_in, rank], 4, true),
                input([rank, d_out], 5, true),
            )
        };
        let factors = |down: &Tensor<2>, up: &Tensor<2>| {
            Some(LowRank {
                down: down.clone(),
                up: up.clone(),
                scale: 0.5,
                dropout: 0.0,
            })
        };
        compare!(
            inputs(),
            [x, weight, bias, down, up],
            {
                let fused = if of_gelu {
                    crate::linear_of_gelu
                } else {
                    crate::linear
                };
                let (bias, factors) = (Some(bias.clone()), factors(&down, &up));
                fused(x.clone(), weight.clone(), bias, factors)
            },
            {
                let seen = if of_gelu {
                    reference::gelu(x.clone())
                } else {
                    x.clone()
                };
                let (bias, factors) = (Some(bias.clone()), factors(&down, &up));
                reference::linear(seen, weight.clone(), bias, factors)
            }
        );
    }
    let inputs = || {
        (
            input([3, seq, d_in], 1, true),
            input([3, seq, d_in], 2, true),
            input([d_in], 3, true),
            input([d_in], 4, true),
        )
    };
    compare!(
        inputs(),
        [x, residual, gamma, beta],
        {
            let (residual, beta) = (Some(residual.clone()), Some(beta.clone()));
            crate::layer_norm(x.clone(), residual, gamma.clone(), beta, 1e-3, 0.0)
        },
        {
            let (residual, beta) = (Some(residual.clone()), Some(beta.clone()));
            reference::layer_norm(x.clone(), residual, gamma.clone(), beta, 1e-3)
        }
    );
    let inputs = || (input([3, seq, d_in], 1, true),);
    compare!(
        inputs(),
        [x],
        crate::gelu(x.clone()),
        reference::gelu(x.clone())
    );
    Ok(())
}

#[test]
fn large_inputs_are_their_references() {
    // Enough rows for a block for each of two threads.
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap()
            .install(large_inputs_are_split)
            .unwrap_or_else(|error| panic!("{threads} threads: {error}"));
    }
}

mod composing;
mod corners;
mod decoder;
mod short_rows;
mod sparse;

//! The operations of decoders, and quantized weights.

use super::*;
use crate::quantized::{QuantizedMatrix, QuantizedWeight};
use crate::{Rotary, Weight};

/// Rows of eighths: a quantized form of which every value is known.
#[derive(Debug)]
struct Eighths {
    codes: Vec<i8>,
    shape: [usize; 2],
}

impl QuantizedMatrix for Eighths {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        let from = first * self.shape[1];
        for (value, code) in values.iter_mut().zip(&self.codes[from..]) {
            *value = f32::from(*code) / 8.0;
        }
    }

    fn bytes(&self) -> usize {
        self.codes.len()
    }

    fn format(&self) -> &'static str {
        "eighths"
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

pub(super) fn quantized(shape: [usize; 2], seed: u64) -> QuantizedWeight {
    let codes = data(&shape, seed)
        .iter::<f32>()
        .map(|value| (value * 8.0) as i8)
        .collect();
    QuantizedWeight::new(Eighths { codes, shape })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn linear_of_swiglu_is_its_reference(
        batch in 1_usize..4, seq in 1_usize..80, d_in in 1_usize..50, d_out in 1_usize..50,
        rank in 1_usize..9, with_factors: bool, trained: [bool; 5], seed: u64,
    ) {
        let mut trained = any_of(trained);
        trained[0] |= !(trained[1] || trained[2] || with_factors && (trained[3] || trained[4]));
        let inputs = || (
            input([batch, seq, d_in], seed, trained[0]),
            input([batch, seq, d_in], seed ^ 1, trained[1]),
            input([d_in, d_out], seed ^ 2, trained[2]),
            input([d_in, rank], seed ^ 3, trained[3] && with_factors),
            input([rank, d_out], seed ^ 4, trained[4] && with_factors),
        );
        let factors = |down: &Tensor<2>, up: &Tensor<2>| with_factors.then(|| LowRank {
            down: down.clone(), up: up.clone(), scale: 0.7, dropout: 0.0 });
        compare!(inputs(), [gate, up, weight, a, b],
            crate::linear_of_swiglu(gate.clone(), up.clone(), weight.clone(), None, factors(&a, &b)),
            reference::linear(reference::swiglu(gate.clone(), up.clone()), weight.clone(), None, factors(&a, &b)));
    }

    #[test]
    fn linear_of_attention_is_its_reference(
        batch in 1_usize..3, queries in 1_usize..60, more in 0_usize..9, kv_heads in 1_usize..3,
        group in 1_usize..3, width in 1_usize..12, d_out in 1_usize..40, rank in 1_usize..5,
        flags: [bool; 4], trained: [bool; 7], seed: u64,
    ) {
        let [with_mask, with_bias, with_factors, is_packed] = flags;
        let (keys, heads) = (queries + more, kv_heads * group);
        let wide = heads * width;
        let mut trained = trained;
        trained[3] &= !is_packed;
        trained[4] &= with_bias;
        trained[5] &= with_factors;
        trained[6] &= with_factors;
        trained[0] |= !trained.contains(&true);
        let rows = quantized([d_out, wide], seed ^ 9);
        let options = crate::AttentionOptions {
            kv_heads, causal: true, ..crate::AttentionOptions::new(heads)
        };
        let inputs = || (
            input([batch, queries, wide], seed, trained[0]),
            input([batch, keys, kv_heads * width], seed ^ 1, trained[1]),
            input([batch, keys, kv_heads * width], seed ^ 2, trained[2]),
            input([wide, d_out], seed ^ 3, trained[3]),
            input([d_out], seed ^ 4, trained[4]),
            input([wide, rank], seed ^ 5, trained[5]),
            input([rank, d_out], seed ^ 6, trained[6]),
        );
        let mask = || with_mask.then(|| input([batch, 1, keys], seed ^ 7, false));
        let extras = |bias: &Tensor<1>, a: &Tensor<2>, b: &Tensor<2>| (
            with_bias.then(|| bias.clone()),
            with_factors.then(|| LowRank { down: a.clone(), up: b.clone(), scale: 0.7, dropout: 0.0 }),
        );
        compare!(inputs(), [query, key, value, weight, bias, a, b], {
            let (bias, factors) = extras(&bias, &a, &b);
            let weight = if is_packed { Weight::from(rows.clone()) } else { weight.clone().into() };
            let inputs = crate::AttentionInputs {
                query: query.clone(), key: key.clone(), value: value.clone(), mask: mask(),
                segments: None, options,
            };
            crate::linear_of_attention(inputs, weight, bias, factors)
        }, {
            let (bias, factors) = extras(&bias, &a, &b);
            let weight = if is_packed { rows.to_tensor(&device()).transpose() } else { weight.clone() };
            let seen = reference::attention(query.clone(), key.clone(), value.clone(), mask(), options);
            reference::linear(seen, weight, bias, factors)
        });
    }

    #[test]
    fn segments_are_their_mask(
        batch in 1_usize..4, length in 1_usize..160, before in 0_usize..9, fewer in 0_usize..170, kv_heads in 1_usize..3,
        group in 1_usize..3, width in 1_usize..12, d_out in 1_usize..20, documents in 1_u32..5, trained: [bool; 5],
        seed: u64,
    ) {
        let trained = if trained[..4].contains(&true) { trained } else { [true; 5] };
        let keys = before + length;
        let queries = keys.saturating_sub(fewer).max(1);
        let heads = kv_heads * group;
        let options = AttentionOptions { kv_heads, causal: true, ..AttentionOptions::new(heads) };
        // Documents come in runs, some of them again, and some places are filler.
        let ids: Vec<Option<u32>> = (0..batch * length).map(|at| {
            let bits = crate::cpu::math::coin(seed ^ 8, at / 3);
            (!bits.is_multiple_of(6)).then_some((bits >> 8) % documents)
        }).collect();
        let segments = crate::Segments::new(ids.iter().copied(), length);
        let told = |row: usize, place: usize| place.checked_sub(before).map(|at| ids[row * length + at]);
        let mut values = Vec::new();
        for row in 0..batch {
            for place in keys - queries..keys {
                for key in 0..keys {
                    let hidden = match (told(row, place), told(row, key)) {
                        (_, None) => false,
                        (None, Some(key)) => key.is_none(),
                        (Some(query), Some(key)) => key.is_none() || key != query,
                    };
                    values.push(if hidden { f32::MIN } else { 0.0 });
                }
            }
        }
        let mask = TensorData::new(values, [batch, queries, keys]);
        segments.mask([queries, keys], &Device::flex()).into_data().assert_eq(&mask, true);
        let mask = || Some(Tensor::<3>::from_data(mask.clone(), &device()));
        let inputs = || (
            input([batch, queries, heads * width], seed, trained[0]),
            input([batch, keys, kv_heads * width], seed ^ 1, trained[1]),
            input([batch, keys, kv_heads * width], seed ^ 2, trained[2]),
            input([heads * width, d_out], seed ^ 3, trained[3]),
        );
        let told = |query: &Tensor<3>, key: &Tensor<3>, value: &Tensor<3>| crate::AttentionInputs {
            query: query.clone(), key: key.clone(), value: value.clone(), mask: None,
            segments: Some(segments.clone()), options,
        };
        compare!(inputs(), [query, key, value, weight],
            crate::linear_of_attention(told(&query, &key, &value), weight.clone(), None, None),
            {
                let seen = reference::attention(query.clone(), key.clone(), value.clone(), mask(), options);
                reference::linear(seen, weight.clone(), None, None)
            });
        let (query, key, value, _) = inputs();
        let found = told(&query, &key, &value).attention().into_data();
        close("attention", &found, &reference::attention(query, key, value, mask(), options).into_data())?;
    }

    #[test]
    fn a_packed_layer_is_that_of_its_values(
        batch in 1_usize..3, seq in 1_usize..40, d_in in 1_usize..60, d_out in 1_usize..60,
        rank in 1_usize..5, seen in 0_usize..3, with_bias: bool, with_factors: bool, trained: [bool; 5], seed: u64,
    ) {
        let mut trained = any_of(trained);
        trained[0] |= !(with_bias && trained[1] || with_factors && (trained[3] || trained[4]) || seen == 2 && trained[2]);
        let weight = quantized([d_out, d_in], seed ^ 9);
        let inputs = || (
            input([batch, seq, d_in], seed, trained[0]),
            input([batch, seq, d_in], seed ^ 2, trained[2] && seen == 2),
            input([d_out], seed ^ 1, trained[1] && with_bias),
            input([d_in, rank], seed ^ 3, trained[3] && with_factors),
            input([rank, d_out], seed ^ 4, trained[4] && with_factors),
        );
        let extras = |bias: &Tensor<1>, a: &Tensor<2>, b: &Tensor<2>| (
            with_bias.then(|| bias.clone()),
            with_factors.then(|| LowRank { down: a.clone(), up: b.clone(), scale: 1.3, dropout: 0.0 }),
        );
        compare!(inputs(), [x, up, bias, a, b], {
            let (bias, factors) = extras(&bias, &a, &b);
            match seen {
                0 => crate::linear(x.clone(), weight.clone(), bias, factors),
                1 => crate::linear_of_gelu(x.clone(), weight.clone(), bias, factors),
                _ => crate::linear_of_swiglu(x.clone(), up.clone(), weight.clone(), bias, factors),
            }
        }, {
            let (bias, factors) = extras(&bias, &a, &b);
            let seen = match seen {
                0 => x.clone(),
                1 => reference::gelu(x.clone()),
                _ => reference::swiglu(x.clone(), up.clone()),
            };
            reference::linear(seen, weight.to_tensor(&device()).transpose(), bias, factors)
        });
    }

    #[test]
    fn linear_of_rms_norm_is_its_reference(
        batch in 1_usize..4, seq in 1_usize..80, d_in in 1_usize..50, d_out in 1_usize..50,
        rank in 1_usize..9, with_factors: bool, is_packed: bool, trained: [bool; 5], seed: u64,
    ) {
        let mut trained = any_of(trained);
        trained[2] &= !is_packed;
        trained[0] |= !(trained[1] || trained[2] || with_factors && (trained[3] || trained[4]));
        let rows = quantized([d_out, d_in], seed ^ 9);
        let inputs = || (
            input([batch, seq, d_in], seed, trained[0]),
            input([d_in], seed ^ 1, trained[1]),
            input([d_in, d_out], seed ^ 2, trained[2]),
            input([d_in, rank], seed ^ 3, trained[3] && with_factors),
            input([rank, d_out], seed ^ 4, trained[4] && with_factors),
        );
        let factors = |down: &Tensor<2>, up: &Tensor<2>| with_factors.then(|| LowRank {
            down: down.clone(), up: up.clone(), scale: 0.7, dropout: 0.0 });
        compare!(inputs(), [x, gamma, weight, a, b], {
            let weight = if is_packed { Weight::from(rows.clone()) } else { weight.clone().into() };
            crate::linear_of_rms_norm(x.clone(), gamma.clone(), 1e-2, weight, None, factors(&a, &b))
        }, {
            let weight = if is_packed { rows.to_tensor(&device()).transpose() } else { weight.clone() };
            let seen = reference::rms_norm(x.clone(), gamma.clone(), 1e-2);
            reference::linear(seen, weight, None, factors(&a, &b))
        });
    }

    #[test]
    fn swiglu_is_its_reference(shape in [1_usize..4, 1_usize..50, 1_usize..200], seed: u64, size in 0.1_f64..20.0, trained: [bool; 5]) {
        let trained = if trained[..2].contains(&true) { trained } else { [true; 5] };
        let inputs = || (input(shape, seed, trained[0]), input(shape, seed ^ 1, trained[1]));
        compare!(inputs(), [gate, up],
            crate::swiglu(gate.clone() * size, up.clone()),
            reference::swiglu(gate.clone() * size, up.clone()));
    }

    #[test]
    fn rms_norm_is_its_reference(
        batch in 1_usize..4, seq in 1_usize..60, width in 1_usize..200, trained: [bool; 5], seed: u64,
    ) {
        let trained = if trained[..2].contains(&true) { trained } else { [true; 5] };
        let inputs = || (input([batch, seq, width], seed, trained[0]), input([width], seed ^ 1, trained[1]));
        compare!(inputs(), [x, gamma],
            crate::rms_norm(x.clone(), gamma.clone(), 1e-3),
            reference::rms_norm(x.clone(), gamma.clone(), 1e-3));
    }

    #[test]
    fn rotary_is_its_reference(
        batch in 1_usize..4, seq in 1_usize..40, heads in 1_usize..5, pairs in 1_usize..12, own: bool, first in 0_usize..500,
        seed: u64,
    ) {
        let items = if own { batch } else { 1 };
        let positions: Vec<usize> = (0..items * seq).map(|at| first + at % seq + at / seq * 7).collect();
        let frequencies: Vec<f64> = (0..pairs).map(|pair| 100_f64.powf(-(pair as f64) / pairs as f64)).collect();
        let angles = Rotary::new(&positions, items, &frequencies, 1.0, &device());
        let inputs = || (input([batch, seq, heads * 2 * pairs], seed, true),);
        compare!(inputs(), [x],
            crate::rotary(x.clone(), &angles, heads),
            reference::rotary(x.clone(), &angles, heads));
    }

    #[test]
    fn linear_cross_entropy_is_its_reference(
        rows in 1_usize..50, d in 1_usize..40, classes in 1_usize..90, is_packed: bool, trained: [bool; 5], seed: u64,
    ) {
        let mut trained = any_of(trained);
        trained[0] |= is_packed || !trained[1];
        let targets: Vec<i64> = (0..rows).map(|row| {
            let bits = crate::cpu::math::coin(seed ^ 5, row);
            if bits.is_multiple_of(5) { -100 } else { i64::from(bits >> 8) % classes as i64 }
        }).collect();
        let rows_of = quantized([classes, d], seed ^ 9);
        let inputs = || (input([rows, d], seed, trained[0]), input([classes, d], seed ^ 1, trained[1] && !is_packed));
        compare!(inputs(), [hidden, head], {
            let head = if is_packed { Weight::from(rows_of.clone()) } else { head.clone().into() };
            crate::linear_cross_entropy(hidden.clone() * 0.5, head, &targets).reshape([1, 1, 1])
        }, {
            let head = if is_packed { rows_of.to_tensor(&device()) } else { head.clone() };
            reference::linear_cross_entropy(hidden.clone() * 0.5, head, &targets).reshape([1, 1, 1])
        });
    }

    #[test]
    fn cross_entropy_with_a_low_rank_is_its_reference(
        rows in 1_usize..50, d in 1_usize..40, classes in 1_usize..90, rank in 1_usize..7, is_packed: bool,
        trained: [bool; 5], seed: u64,
    ) {
        let mut trained = any_of(trained);
        trained[1] &= !is_packed;
        trained[0] |= !(trained[1] || trained[2] || trained[3]);
        let targets: Vec<i64> = (0..rows).map(|row| {
            let bits = crate::cpu::math::coin(seed ^ 5, row);
            if bits.is_multiple_of(5) { -100 } else { i64::from(bits >> 8) % classes as i64 }
        }).collect();
        let rows_of = quantized([classes, d], seed ^ 9);
        let inputs = || (
            input([rows, d], seed, trained[0]),
            input([classes, d], seed ^ 1, trained[1]),
            input([d, rank], seed ^ 2, trained[2]),
            input([rank, classes], seed ^ 3, trained[3]),
        );
        let factors = |down: &Tensor<2>, up: &Tensor<2>| LowRank {
            down: down.clone(), up: up.clone(), scale: 0.7, dropout: 0.0 };
        compare!(inputs(), [hidden, head, down, up], {
            let head = if is_packed { Weight::from(rows_of.clone()) } else { head.clone().into() };
            let factors = Some(factors(&down, &up));
            crate::linear_cross_entropy_with(hidden.clone() * 0.5, head, factors, &targets).reshape([1, 1, 1])
        }, {
            let head = if is_packed { rows_of.to_tensor(&device()) } else { head.clone() };
            let head = head + factors(&down, &up).product().transpose();
            reference::linear_cross_entropy(hidden.clone() * 0.5, head, &targets).reshape([1, 1, 1])
        });
    }
}

/// More classes and rows than fit one block of logits, and more of a matrix than one panel.
#[test]
fn large_heads_are_worked_on_in_blocks() {
    let (rows, d, classes) = (300, 24, 40_000);
    let targets: Vec<i64> = (0..rows as i64)
        .map(|row| row * 131 % classes as i64 - 20)
        .collect();
    let head = quantized([classes, d], 3);
    let pass = |loss: fn(Tensor<2>, Tensor<2>, &[i64]) -> Tensor<1>, head: &Tensor<2>| {
        let hidden = input([rows, d], 1, true);
        let loss = loss(hidden.clone(), head.clone(), &targets);
        let gradients = loss.backward();
        (
            loss.into_data(),
            hidden.grad(&gradients).unwrap().into_data(),
        )
    };
    let dense = head.to_tensor(&device());
    let expected = pass(reference::linear_cross_entropy, &dense);
    let found = pass(crate::linear_cross_entropy, &dense);
    close("loss", &found.0, &expected.0).unwrap();
    close("gradient", &found.1, &expected.1).unwrap();
    let hidden = input([rows, d], 1, true);
    let loss = crate::linear_cross_entropy(hidden.clone(), head.clone(), &targets);
    let gradients = loss.backward();
    close("quantized loss", &loss.into_data(), &expected.0).unwrap();
    close(
        "quantized gradient",
        &hidden.grad(&gradients).unwrap().into_data(),
        &expected.1,
    )
    .unwrap();
    let (down, up) = (input([d, 3], 7, true), input([3, classes], 8, true));
    let factors = LowRank {
        down: down.clone(),
        up: up.clone(),
        scale: 0.5,
        dropout: 0.0,
    };
    let gradients = |loss: &Tensor<1>| {
        let gradients = loss.backward();
        [&hidden, &down, &up].map(|input| input.grad(&gradients).unwrap().into_data())
    };
    let changed = dense.clone() + factors.product().transpose();
    let loss = reference::linear_cross_entropy(hidden.clone(), changed, &targets);
    let expected = gradients(&loss);
    for head in [Weight::from(dense.clone()), Weight::from(head.clone())] {
        let factors = Some(factors.clone());
        let found = crate::linear_cross_entropy_with(hidden.clone(), head, factors, &targets);
        for (found, expected) in gradients(&found).iter().zip(&expected) {
            close("gradient with factors", found, expected).unwrap();
        }
        close(
            "loss with factors",
            &found.into_data(),
            &loss.clone().into_data(),
        )
        .unwrap();
    }
    let x = input([1, 7, d], 4, true);
    let (found, wanted) = (
        crate::linear(x.clone(), head, None, None),
        reference::linear(x, dense.transpose(), None, None),
    );
    close("layer", &found.into_data(), &wanted.into_data()).unwrap();
}

/// Without fusing, quantized weights are decoded whole: the same numbers.
#[test]
fn rows_of_a_packed_table_are_its_values() {
    let table = quantized([50, 7], 2);
    let all = table.to_tensor(&Device::flex());
    let some = table.rows_to_tensor(&[49, 0, 7, 7], &Device::flex());
    for (at, row) in [49, 0, 7, 7].into_iter().enumerate() {
        let (found, expected) = (
            some.clone().slice_dim(0, at..at + 1),
            all.clone().slice_dim(0, row..row + 1),
        );
        found.into_data().assert_eq(&expected.into_data(), true);
    }
}

/// A loss whose logits are no numbers says so.
#[test]
fn a_loss_of_what_is_no_number_is_none() {
    let hidden = Tensor::<2>::full([2, 3], f32::NAN, &Device::flex());
    let loss = crate::linear_cross_entropy(hidden, quantized([5, 3], 1), &[1, 2]);
    assert!(loss.into_scalar::<f32>().is_nan());
}

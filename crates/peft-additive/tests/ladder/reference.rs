//! The side network computed number by number, as the paper's formulas say it.

use burn::module::Param;
use burn::tensor::Tensor;
use peft_additive::Rung;

pub(crate) fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// `[in, out]`, row after row.
struct Matrix {
    values: Vec<f64>,
    columns: usize,
}

impl Matrix {
    fn of(param: &Param<Tensor<2>>) -> Self {
        Self {
            columns: param.dims()[1],
            values: numbers(param.val()),
        }
    }

    fn times(&self, x: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        for (value, row) in x.iter().zip(self.values.chunks(self.columns)) {
            for (sum, weight) in sums.iter_mut().zip(row) {
                *sum += value * weight;
            }
        }
        sums
    }
}

pub(crate) fn plus(one: &[f64], other: &[f64]) -> Vec<f64> {
    one.iter()
        .zip(other)
        .map(|(one, other)| one + other)
        .collect()
}

fn normalised(x: &[f64], gamma: &[f64]) -> Vec<f64> {
    let square = x.iter().map(|value| value * value).sum::<f64>() / x.len() as f64;
    let root = (square + 1e-6).sqrt();
    x.iter()
        .zip(gamma)
        .map(|(x, gamma)| x / root * gamma)
        .collect()
}

/// The last hidden states `[seq][d]` of one row, from those of the model: those before the first block, and those after
/// each. `sees(query, key)` says which tokens see which. One head, relu.
pub(crate) fn reference(
    rungs: &[Rung],
    states: &[Vec<Vec<f64>>],
    temperature: f64,
    sees: impl Fn(usize, usize) -> bool,
) -> Vec<Vec<f64>> {
    let tokens = states[0].len();
    let mut side: Vec<Vec<f64>> = Vec::new();
    for rung in rungs {
        if let Some(input) = &rung.input {
            let (down, bias) = (Matrix::of(&input.weight), numbers(input.bias.val()));
            side = states[0]
                .iter()
                .map(|x| plus(&down.times(x), &bias))
                .collect();
        }
        if let Some(block) = &rung.block {
            let alpha = numbers(block.gate.val())[0];
            let gate = 1.0 / (1.0 + (-alpha / temperature).exp());
            let (down, bias) = (Matrix::of(&block.down), numbers(block.down_bias.val()));
            for (side, hidden) in side.iter_mut().zip(&states[rung.index + 1]) {
                let down = plus(&down.times(hidden), &bias);
                let mixed = side
                    .iter()
                    .zip(&down)
                    .map(|(s, d)| gate * s + (1.0 - gate) * d);
                *side = mixed.collect();
            }
            let gamma = numbers(block.attention_norm.val());
            let inputs: Vec<_> = side.iter().map(|x| normalised(x, &gamma)).collect();
            let project = |weight: &Param<Tensor<2>>| -> Vec<Vec<f64>> {
                let weight = Matrix::of(weight);
                inputs.iter().map(|x| weight.times(x)).collect()
            };
            let (query, key, value) = (
                project(&block.query),
                project(&block.key),
                project(&block.value),
            );
            let back = Matrix::of(&block.attention_output);
            for at in 0..tokens {
                let scores: Vec<f64> = (0..tokens)
                    .map(|other| {
                        let dot = query[at].iter().zip(&key[other]).map(|(q, k)| q * k);
                        let score = dot.sum::<f64>() / (query[at].len() as f64).sqrt();
                        if sees(at, other) { score.exp() } else { 0.0 }
                    })
                    .collect();
                let sum: f64 = scores.iter().sum();
                let mut attended = vec![0.0; value[0].len()];
                for (score, value) in scores.iter().zip(&value) {
                    for (sum_of, value) in attended.iter_mut().zip(value) {
                        *sum_of += score / sum * value;
                    }
                }
                side[at] = plus(&side[at], &back.times(&attended));
            }
            let gamma = numbers(block.feed_forward_norm.val());
            let up = Matrix::of(&block.feed_forward_up);
            let down = Matrix::of(&block.feed_forward_down);
            for side in &mut side {
                let inner = up.times(&normalised(side, &gamma));
                let inner: Vec<f64> = inner.into_iter().map(|value| value.max(0.0)).collect();
                *side = plus(side, &down.times(&inner));
            }
        }
        if let Some(output) = &rung.output {
            let (up, bias) = (Matrix::of(&output.weight), numbers(output.bias.val()));
            let gamma = numbers(output.norm.val());
            let last = side.iter().zip(&states[states.len() - 1]);
            return last
                .map(|(side, hidden)| {
                    let up = plus(&up.times(&normalised(side, &gamma)), &bias);
                    plus(hidden, &up)
                })
                .collect();
        }
    }
    unreachable!("the last block of the model ends the side network")
}

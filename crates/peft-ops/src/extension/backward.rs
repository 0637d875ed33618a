//! Gradients of the operations, from what they kept.

use std::sync::Arc;

use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;
use burn_flex::FlexTensor;

use super::Fused;
use super::forward::attend;
use super::kept::{Attended, Kept};
use super::tensors::{affine, low_rank, numbers, rotation, tensor, vector};
use super::weight::{Side, Weight};
use crate::cpu::buffers::change_rows;
use crate::cpu::dropout::{self, Coins};
use crate::cpu::linear::{self, LowRank, Sizes};
use crate::cpu::sparse::Pattern;
use crate::cpu::{gelu, norm, quantized, rms, rotary, swiglu};

/// What a linear layer keeps.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub(super) sizes: Sizes,
    pub(super) scale: f32,
    pub(super) input_shape: Shape,
    /// Whether the layer saw GELU of its input.
    pub(super) gelu: bool,
    /// For the gradients of W and A, and through an activation.
    pub(super) input: Option<FlexTensor>,
    /// What silu of the input gates, if the layer saw that.
    pub(super) gated: Option<FlexTensor>,
    /// γ, if the layer saw its input normalised.
    pub(super) gamma: Option<FlexTensor>,
    /// Of the normalisation.
    pub(super) epsilon: f32,
    /// What A did not see.
    pub(super) coins: Option<Coins>,
    /// For the gradient of x.
    pub(super) weight: Option<Weight>,
    /// For the gradient of x.
    pub(super) down: Option<FlexTensor>,
    /// For the gradients of x and A.
    pub(super) up: Option<FlexTensor>,
    /// x A, for the gradient of B.
    pub(super) through: Option<FlexTensor>,
    pub(super) rank: usize,
}

impl Linear {
    /// The gradient of what the layer saw, and `dy Bᵀ·s`.
    fn seen_gradient(&self, dy: &[f32]) -> [Vec<f32>; 2] {
        let factors = self.down.as_ref().zip(self.up.as_ref());
        let factors = factors.map(|(down, up)| low_rank(down, up, self.scale));
        let side = self.weight.as_ref();
        let (dense, quantized) = match side.map(|weight| weight.side(self.sizes.rows)) {
            Some(Side::Dense(right)) => (Some(right), None),
            Some(Side::Quantized(weight, rounded)) => (None, Some((weight, rounded))),
            None => (None, None),
        };
        // Through GELU block by block, unless more is to be added first.
        let later = quantized.is_some() || self.coins.is_some();
        let through = self.input.as_ref().filter(|_| self.gelu);
        let early = through.filter(|_| !later).map(numbers);
        let whole = factors.filter(|_| self.coins.is_none());
        let [mut d_seen, mut back] = linear::input_gradient(self.sizes, dy, dense, whole, early);
        if let (Some(coins), Some(factors)) = (self.coins, factors) {
            let LowRank { down, up, rank, .. } = factors;
            back = linear::low_rank_gradient(self.sizes, dy, up, rank, self.scale);
            linear::add_dropped(self.sizes, &back, down, coins, &mut d_seen);
        }
        if let Some((weight, rounded)) = quantized {
            quantized::add_backward(dy, self.sizes.rows, weight, rounded, &mut d_seen);
        }
        if let Some(input) = through.filter(|_| later) {
            gelu::backward_in_place(numbers(input), &mut d_seen);
        }
        [d_seen, back]
    }

    /// What the layer saw: activations are computed again rather than kept.
    fn seen(&self) -> Option<FlexTensor> {
        let input = self.input.as_ref()?;
        let x = numbers(input);
        let again = match (&self.gated, &self.gamma) {
            (Some(gated), _) => swiglu::forward(x, numbers(gated)),
            (None, Some(gamma)) => rms::forward(x, numbers(gamma), self.epsilon),
            (None, None) if self.gelu => gelu::forward(x),
            (None, None) => return Some(input.clone()),
        };
        Some(tensor(again, input.shape()))
    }
}

impl Kept<7> for Linear {
    /// Of x, what it gates, γ, W, b, A and B.
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 7]) -> [Option<FlexTensor>; 7] {
        let [
            of_input,
            of_gated,
            of_gamma,
            of_weight,
            of_bias,
            of_down,
            of_up,
        ] = wanted;
        let Sizes { rows, d_in, d_out } = self.sizes;
        let (scale, rank) = (self.scale, self.rank);
        let dy = numbers(&gradient);
        let d_up = self.through.as_ref().filter(|_| of_up).map(|through| {
            let data = linear::outer(numbers(through), dy, rows, scale);
            tensor(data, [rank, d_out].into())
        });
        let d_bias = of_bias.then(|| vector(linear::column_sums(dy, d_out)));
        // dy Bᵀ·s comes with the input's gradient, or alone.
        let (d_seen, back) = if of_input || of_gated || of_gamma {
            let [d_seen, back] = self.seen_gradient(dy);
            (Some(d_seen), Some(back))
        } else {
            let up = self.up.as_ref().filter(|_| of_down);
            let back =
                up.map(|up| linear::low_rank_gradient(self.sizes, dy, numbers(up), rank, scale));
            (None, back)
        };
        let seen = (of_weight || of_down).then(|| self.seen()).flatten();
        let d_down = seen
            .as_ref()
            .map(numbers)
            .zip(back)
            .filter(|_| of_down)
            .map(|(seen, back)| {
                let dropped = self.coins.map(|coins| {
                    let mut dropped = seen.to_vec();
                    dropout::in_place(&mut dropped, coins);
                    dropped
                });
                let seen = dropped.as_deref().unwrap_or(seen);
                let data = linear::outer(seen, &back, rows, 1.0);
                tensor(data, [d_in, rank].into())
            });
        let d_weight = seen.as_ref().filter(|_| of_weight).map(|seen| {
            let data = linear::outer(numbers(seen), dy, rows, 1.0);
            tensor(data, [d_in, d_out].into())
        });
        // What is to come needs memory of its own.
        drop(seen);
        let shape = self.input_shape;
        let mut d_gamma = None;
        let [d_input, d_gated] = match (d_seen, &self.input, &self.gated, &self.gamma) {
            (Some(d_seen), Some(input), Some(gated), _) => {
                swiglu::backward(numbers(input), numbers(gated), d_seen).map(Some)
            }
            (Some(mut d_seen), Some(input), None, Some(gamma)) => {
                let (x, gamma) = (numbers(input), numbers(gamma));
                d_gamma = of_gamma
                    .then(|| vector(rms::gamma_gradient(x, gamma.len(), self.epsilon, &d_seen)));
                rms::backward_in_place(x, gamma, self.epsilon, &mut d_seen);
                [Some(d_seen), None]
            }
            (d_seen, _, _, _) => [d_seen, None],
        };
        let shaped = |data| tensor(data, shape.clone());
        [
            d_input.filter(|_| of_input).map(shaped),
            d_gated.filter(|_| of_gated).map(shaped),
            d_gamma,
            d_weight,
            d_bias,
            d_down,
            d_up,
        ]
    }
}

/// What a linear layer of attention keeps: what attention keeps, and never its output.
#[derive(Clone, Debug)]
pub(super) struct LinearOfAttended {
    pub(super) attended: Attended,
    /// Without an input.
    pub(super) linear: Linear,
}

impl Kept<7> for LinearOfAttended {
    /// Of queries, keys, values, W, b, A and B.
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 7]) -> [Option<FlexTensor>; 7] {
        let [query, key, value, of_weight, of_bias, of_down, of_up] = wanted;
        let through = query || key || value;
        let Self {
            attended,
            mut linear,
        } = self;
        if of_weight || of_down {
            linear.input = Some(attend(&attended));
        }
        let of_linear = [through, false, false, of_weight, of_bias, of_down, of_up];
        let [d_attended, _, _, d_weight, d_bias, d_down, d_up] =
            linear.gradients(gradient, of_linear);
        let [d_query, d_key, d_value] = match d_attended {
            Some(gradient) => attended.gradients(gradient, [query, key, value]),
            None => [None, None, None],
        };
        [d_query, d_key, d_value, d_weight, d_bias, d_down, d_up]
    }
}

/// What an addition of a low-rank product keeps: as a layer without a weight.
#[derive(Clone, Debug)]
pub(super) struct Added(pub(super) Linear);

impl Kept<4> for Added {
    /// Of y, x, A and B.
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let [of_output, of_input, of_down, of_up] = wanted;
        let wanted = [of_input, false, false, false, false, of_down, of_up];
        let [d_input, _, _, _, _, d_down, d_up] = self.0.gradients(gradient.clone(), wanted);
        [of_output.then_some(gradient), d_input, d_down, d_up]
    }
}

/// What an addition of a sparse product keeps.
#[derive(Clone, Debug)]
pub(super) struct Scattered {
    pub(super) input_shape: Shape,
    /// For the gradient of the values.
    pub(super) input: Option<FlexTensor>,
    /// For the gradient of x.
    pub(super) values: Option<FlexTensor>,
    pub(super) pattern: Arc<Pattern>,
}

impl Kept<3> for Scattered {
    /// Of y, x and the values.
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [of_output, of_input, of_values] = wanted;
        let dy = numbers(&gradient);
        let d_input = self.values.as_ref().filter(|_| of_input).map(|values| {
            let data = self.pattern.input_gradient(numbers(values), dy);
            tensor(data, self.input_shape)
        });
        let d_values = self.input.as_ref().filter(|_| of_values);
        let d_values = d_values.map(|x| vector(self.pattern.value_gradient(numbers(x), dy)));
        [of_output.then_some(gradient), d_input, d_values]
    }
}

/// What GELU keeps: its input.
#[derive(Clone, Debug)]
pub(super) struct OfGelu(pub(super) FlexTensor);

impl Kept<1> for OfGelu {
    fn gradients(self, mut gradient: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        gelu::backward_in_place(numbers(&self.0), gradient.storage_mut());
        [Some(gradient)]
    }
}

/// What dropout keeps: how to throw the same coins again.
#[derive(Clone, Debug)]
pub(super) struct Dropped(pub(super) Coins);

impl Kept<1> for Dropped {
    fn gradients(self, gradient: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(Flex::dropout(gradient, self.0))]
    }
}

/// What a normalisation keeps.
#[derive(Clone, Debug)]
pub(super) struct Normalised {
    /// What was normalised.
    pub(super) sum: FlexTensor,
    pub(super) gamma: FlexTensor,
    pub(super) epsilon: f32,
    pub(super) coins: Option<Coins>,
}

impl Kept<4> for Normalised {
    /// Of x, the residual, γ and β.
    fn gradients(self, mut gradient: FlexTensor, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let [of_input, of_residual, of_gamma, of_beta] = wanted;
        let affine = affine(&self.gamma, None, self.epsilon);
        let sum = numbers(&self.sum);
        let (d_gamma, d_beta) = (of_gamma || of_beta)
            .then(|| norm::affine_gradients(sum, affine, numbers(&gradient)))
            .unzip();
        let d_gamma = d_gamma.filter(|_| of_gamma).map(vector);
        let d_beta = d_beta.filter(|_| of_beta).map(vector);
        if !of_input && !of_residual {
            return [None, None, d_gamma, d_beta];
        }
        norm::backward_in_place(sum, affine, gradient.storage_mut());
        let d_residual = of_residual.then(|| gradient.clone());
        let d_input = of_input.then(|| match self.coins {
            Some(coins) => Flex::dropout(gradient, coins),
            None => gradient,
        });
        [d_input, d_residual, d_gamma, d_beta]
    }
}

/// What a normalisation by the root mean square keeps.
#[derive(Clone, Debug)]
pub(super) struct RmsNormalised {
    pub(super) input: FlexTensor,
    pub(super) gamma: FlexTensor,
    pub(super) epsilon: f32,
}

impl Kept<2> for RmsNormalised {
    /// Of x and γ.
    fn gradients(self, mut gradient: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [of_input, of_gamma] = wanted;
        let (x, gamma) = (numbers(&self.input), numbers(&self.gamma));
        let d_gamma = of_gamma.then(|| {
            let data = rms::gamma_gradient(x, gamma.len(), self.epsilon, numbers(&gradient));
            vector(data)
        });
        let d_input = of_input.then(|| {
            rms::backward_in_place(x, gamma, self.epsilon, gradient.storage_mut());
            gradient
        });
        [d_input, d_gamma]
    }
}

/// What a rotation keeps: the angles.
#[derive(Clone, Debug)]
pub(super) struct Rotated {
    pub(super) cos: FlexTensor,
    pub(super) sin: FlexTensor,
    pub(super) heads: usize,
}

impl Kept<1> for Rotated {
    fn gradients(self, mut gradient: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let angles = rotation(&self.cos, &self.sin, self.heads);
        rotary::in_place(gradient.storage_mut(), angles, true);
        [Some(gradient)]
    }
}

/// What SwiGLU keeps: its inputs.
#[derive(Clone, Debug)]
pub(super) struct Gated {
    pub(super) gate: FlexTensor,
    pub(super) up: FlexTensor,
}

impl Kept<2> for Gated {
    /// Of the gate and of what it gates.
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let (gate, up) = (numbers(&self.gate), numbers(&self.up));
        let [d_gate, d_up] = swiglu::backward(gate, up, numbers(&gradient).to_vec());
        let shaped = |data| tensor(data, self.gate.shape());
        [
            wanted[0].then(|| shaped(d_gate)),
            wanted[1].then(|| shaped(d_up)),
        ]
    }
}

/// What a cross entropy keeps: its gradients, up to the factor that comes back.
#[derive(Clone, Debug)]
pub(super) struct Lost(pub(super) [Option<FlexTensor>; 4]);

impl Kept<4> for Lost {
    /// Of the hidden states, of the head, and of the two factors of what is added to the logits.
    fn gradients(self, gradient: FlexTensor, _: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let factor = numbers(&gradient)[0];
        self.0.map(|tensor| {
            tensor.map(|mut tensor| {
                change_rows(tensor.storage_mut(), 1, |_, part: &mut [f32]| {
                    for value in part {
                        *value *= factor;
                    }
                });
                tensor
            })
        })
    }
}

impl Kept<3> for Attended {
    /// Of queries, keys and values.
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [d_query, d_key, d_value] =
            self.settings
                .backward(self.inputs(), numbers(&gradient), wanted);
        [
            wanted[0].then(|| tensor(d_query, self.query.shape())),
            wanted[1].then(|| tensor(d_key, self.key.shape())),
            wanted[2].then(|| tensor(d_value, self.value.shape())),
        ]
    }
}

//! Gradients of the operations, from what they kept.

use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;
use burn_flex::FlexTensor;

use super::Fused;
use super::autodiff::Kept;
use super::tensors::{affine, low_rank, mask, matrix, numbers, tensor, vector};
use crate::cpu::attention::{Attention, Inputs};
use crate::cpu::dropout::Coins;
use crate::cpu::gelu;
use crate::cpu::linear::{self, Sizes};
use crate::cpu::norm;

/// What a linear layer keeps.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub(super) sizes: Sizes,
    pub(super) scale: f32,
    pub(super) input_shape: Shape,
    /// Whether the layer saw GELU of its input.
    pub(super) gelu: bool,
    /// For the gradients of W and A, and through GELU.
    pub(super) input: Option<FlexTensor>,
    /// For the gradient of x.
    pub(super) weight: Option<FlexTensor>,
    /// For the gradient of x.
    pub(super) down: Option<FlexTensor>,
    /// For the gradients of x and A.
    pub(super) up: Option<FlexTensor>,
    /// x A, for the gradient of B.
    pub(super) through: Option<FlexTensor>,
    pub(super) rank: usize,
}

impl Kept<5> for Linear {
    /// Of x, W, b, A and B.
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 5]) -> [Option<FlexTensor>; 5] {
        let [of_input, of_weight, of_bias, of_down, of_up] = wanted;
        let Self {
            sizes, scale, rank, ..
        } = self;
        let Sizes { rows, d_in, d_out } = sizes;
        let dy = numbers(&gradient);
        let d_up = self.through.filter(|_| of_up).map(|through| {
            let data = linear::outer(numbers(&through), dy, rows, scale);
            tensor(data, [rank, d_out].into())
        });
        let d_bias = of_bias.then(|| vector(linear::column_sums(dy, d_out)));
        // dy Bᵀ·s comes with the input's gradient, or alone.
        let (d_input, back) = if of_input {
            let factors = self.down.as_ref().zip(self.up.as_ref());
            let input = self.input.as_ref().filter(|_| self.gelu);
            let [d_input, back] = linear::input_gradient(
                sizes,
                dy,
                self.weight.as_ref().map(matrix),
                factors.map(|(down, up)| low_rank(down, up, scale)),
                input.map(numbers),
            );
            (Some(tensor(d_input, self.input_shape)), Some(back))
        } else {
            let up = self.up.filter(|_| of_down);
            let back = up.map(|up| linear::low_rank_gradient(sizes, dy, numbers(&up), rank, scale));
            (None, back)
        };
        // GELU is computed again rather than kept.
        let seen = self.input.filter(|_| of_weight || of_down).map(|input| {
            if self.gelu {
                tensor(gelu::forward(numbers(&input)), input.shape())
            } else {
                input
            }
        });
        let seen = seen.as_ref().map(numbers);
        let d_down = seen.zip(back).filter(|_| of_down).map(|(seen, back)| {
            let data = linear::outer(seen, &back, rows, 1.0);
            tensor(data, [d_in, rank].into())
        });
        let d_weight = seen.filter(|_| of_weight).map(|seen| {
            let data = linear::outer(seen, dy, rows, 1.0);
            tensor(data, [d_in, d_out].into())
        });
        [d_input, d_weight, d_bias, d_down, d_up]
    }
}

/// What an addition of a low-rank product keeps: as a layer without a weight.
#[derive(Clone, Debug)]
pub(super) struct Added(pub(super) Linear);

impl Kept<4> for Added {
    /// Of y, x, A and B.
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let [of_output, of_input, of_down, of_up] = wanted;
        let wanted = [of_input, false, false, of_down, of_up];
        let [d_input, _, _, d_down, d_up] = self.0.gradients(gradient.clone(), wanted);
        [of_output.then_some(gradient), d_input, d_down, d_up]
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

/// What attention keeps: its inputs. Weights are computed again.
#[derive(Clone, Debug)]
pub(super) struct Attended {
    pub(super) query: FlexTensor,
    pub(super) key: FlexTensor,
    pub(super) value: FlexTensor,
    pub(super) mask: Option<FlexTensor>,
    pub(super) settings: Attention,
}

impl Attended {
    pub(super) fn inputs(&self) -> Inputs<'_> {
        Inputs {
            query: numbers(&self.query),
            key: numbers(&self.key),
            value: numbers(&self.value),
            mask: mask(self.mask.as_ref()),
        }
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

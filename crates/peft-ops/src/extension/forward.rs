//! The operations on tensors that record nothing.

use burn::backend::{Flex, TensorMetadata};
use burn_flex::FlexTensor;

use super::backward::Attended;
use super::tensors::{
    affine, dense, low_rank, matrix, numbers, rows, tensor, vector, weight, with_width,
};
use super::{Fused, Maybe};
use crate::cpu::attention::Attention;
use crate::cpu::dropout::{self, Coins};
use crate::cpu::gelu;
use crate::cpu::linear::Sizes;
use crate::cpu::norm::Affine;
use crate::cpu::{linear as layer, norm as normalise};

impl Fused for Flex {
    fn linear(
        input: FlexTensor,
        weight: FlexTensor,
        bias: Maybe<Self>,
        down: Maybe<Self>,
        up: Maybe<Self>,
        scale: f32,
        gelu: bool,
    ) -> FlexTensor {
        let (input, weight) = (dense(input), self::weight(weight));
        let (bias, down, up) = (
            bias.get().map(dense),
            down.get().map(dense),
            up.get().map(dense),
        );
        let factors = down.as_ref().zip(up.as_ref());
        linear(&input, &weight, bias.as_ref(), factors, scale, gelu).0
    }

    fn add_low_rank(
        output: FlexTensor,
        input: FlexTensor,
        down: FlexTensor,
        up: FlexTensor,
        scale: f32,
    ) -> FlexTensor {
        let (input, down, up) = (dense(input), dense(down), dense(up));
        add_low_rank(output, &input, &down, &up, scale).0
    }

    fn gelu(input: FlexTensor) -> FlexTensor {
        let mut input = dense(input);
        if let Some(numbers) = input.try_storage_mut() {
            gelu::forward_in_place(numbers);
            return input;
        }
        tensor(gelu::forward(numbers(&input)), input.shape())
    }

    fn dropout(input: FlexTensor, coins: Coins) -> FlexTensor {
        let mut input = dense(input);
        dropout::in_place(input.storage_mut(), coins);
        input
    }

    fn layer_norm(
        input: FlexTensor,
        residual: Maybe<Self>,
        gamma: FlexTensor,
        beta: Maybe<Self>,
        epsilon: f32,
        coins: Option<Coins>,
    ) -> FlexTensor {
        let (gamma, beta) = (dense(gamma), beta.get().map(dense));
        let affine = affine(&gamma, beta.as_ref(), epsilon);
        norm(input, residual.get(), affine, coins, false).0
    }

    fn column_norms(matrix: FlexTensor) -> FlexTensor {
        let matrix = dense(matrix);
        vector(layer::column_norms(numbers(&matrix), rows(&matrix).1))
    }

    fn attention(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        added: Maybe<Self>,
        settings: Attention,
    ) -> FlexTensor {
        attend(&Attended {
            query: dense(query),
            key: dense(key),
            value: dense(value),
            mask: added.get().map(dense),
            settings,
        })
    }
}

/// What [`Fused::linear`] computes, with `x A`.
pub(super) fn linear(
    input: &FlexTensor,
    weight: &FlexTensor,
    bias: Option<&FlexTensor>,
    factors: Option<(&FlexTensor, &FlexTensor)>,
    scale: f32,
    gelu: bool,
) -> (FlexTensor, FlexTensor, Sizes) {
    let (rows, d_in) = rows(input);
    let d_out = self::rows(weight).1;
    let sizes = Sizes { rows, d_in, d_out };
    let data = numbers(input);
    let [output, through] = layer::forward(
        sizes,
        layer::Input { data, gelu },
        matrix(weight),
        bias.map(numbers),
        factors.map(|(down, up)| low_rank(down, up, scale)),
    );
    let shape = with_width(input.shape(), d_out);
    (tensor(output, shape), vector(through), sizes)
}

pub(super) fn add_low_rank(
    output: FlexTensor,
    input: &FlexTensor,
    down: &FlexTensor,
    up: &FlexTensor,
    scale: f32,
) -> (FlexTensor, FlexTensor, Sizes) {
    let (rows, d_in) = rows(input);
    let d_out = self::rows(up).1;
    let sizes = Sizes { rows, d_in, d_out };
    let mut output = dense(output);
    let factors = low_rank(down, up, scale);
    let through = layer::add_low_rank(sizes, output.storage_mut(), numbers(input), factors);
    (output, vector(through), sizes)
}

/// What [`Fused::layer_norm`] computes, and what was normalised if that is `kept`.
pub(super) fn norm(
    input: FlexTensor,
    residual: Option<FlexTensor>,
    affine: Affine<'_>,
    coins: Option<Coins>,
    kept: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    let (input, residual) = (dense(input), residual.map(dense));
    // The input itself is what is normalised where nothing is done to it before.
    let summed = residual.is_some() || coins.is_some();
    let [output, sum] = normalise::forward(
        numbers(&input),
        residual.as_ref().map(numbers),
        coins,
        affine,
        kept && summed,
    );
    let shape = input.shape();
    let sum = kept.then(|| {
        if summed {
            tensor(sum, shape.clone())
        } else {
            input
        }
    });
    (tensor(output, shape), sum)
}

/// What [`Fused::attention`] computes.
pub(super) fn attend(inputs: &Attended) -> FlexTensor {
    let output = inputs.settings.forward(inputs.inputs());
    tensor(output, inputs.query.shape())
}

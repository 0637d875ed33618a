//! The operations on tensors that record nothing.

use std::sync::Arc;

use burn::backend::{Flex, TensorMetadata};
use burn_flex::FlexTensor;

use super::kept::Attended;
use super::tensors::{
    affine, dense, items, low_rank, matrix, numbers, rotation, rows, tensor, vector, with_width,
};
use super::weight::{Side, Weight};
use super::{Fused, Layer, Maybe};
use crate::cpu::attention::Attention;
use crate::cpu::cross_entropy::{self, Added, Loss};
use crate::cpu::dropout::{self, Coins};
use crate::cpu::linear::Sizes;
use crate::cpu::norm::Affine;
use crate::cpu::sparse::Pattern;
use crate::cpu::{gelu, linear as layer, norm as normalise, rms, rotary, swiglu};
use crate::options::MixedPrecision;
use crate::quantized::QuantizedWeight;
use crate::segments::Segments;

impl Fused for Flex {
    fn linear(
        input: FlexTensor,
        gated: Maybe<Self>,
        gamma: Maybe<Self>,
        weight: Maybe<Self>,
        bias: Maybe<Self>,
        down: Maybe<Self>,
        up: Maybe<Self>,
        layer: Layer,
    ) -> FlexTensor {
        let [gated, gamma, bias, down, up] =
            [gated, gamma, bias, down, up].map(|tensor| tensor.get().map(dense));
        let weight = Weight::new(weight.get(), layer.quantized, layer.precision, false);
        let input = Input {
            data: &dense(input),
            gated: gated.as_ref(),
            gamma: gamma.as_ref(),
            gelu: layer.gelu,
            epsilon: layer.epsilon,
            coins: layer.coins,
        };
        let factors = down.as_ref().zip(up.as_ref());
        linear(input, &weight, bias.as_ref(), factors, layer.scale).0
    }

    fn add_low_rank(
        output: FlexTensor,
        input: FlexTensor,
        down: FlexTensor,
        up: FlexTensor,
        scale: f32,
        coins: Option<Coins>,
    ) -> FlexTensor {
        let (input, down, up) = (dense(input), dense(down), dense(up));
        add_low_rank(output, &input, &down, &up, scale, coins).0
    }

    fn add_sparse(
        output: FlexTensor,
        input: FlexTensor,
        values: FlexTensor,
        pattern: Arc<Pattern>,
    ) -> FlexTensor {
        let (mut output, input, values) = (dense(output), dense(input), dense(values));
        pattern.add(numbers(&values), numbers(&input), output.storage_mut());
        output
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

    fn rms_norm(input: FlexTensor, gamma: FlexTensor, epsilon: f32) -> FlexTensor {
        let (input, gamma) = (dense(input), dense(gamma));
        tensor(
            rms::forward(numbers(&input), numbers(&gamma), epsilon),
            input.shape(),
        )
    }

    fn rotary(input: FlexTensor, cos: FlexTensor, sin: FlexTensor, heads: usize) -> FlexTensor {
        let (mut input, cos, sin) = (dense(input), dense(cos), dense(sin));
        rotary::in_place(input.storage_mut(), rotation(&cos, &sin, heads), false);
        input
    }

    fn swiglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let (gate, up) = (dense(gate), dense(up));
        tensor(swiglu::forward(numbers(&gate), numbers(&up)), gate.shape())
    }

    fn linear_cross_entropy(
        hidden: FlexTensor,
        head: Maybe<Self>,
        quantized: Option<QuantizedWeight>,
        through: Maybe<Self>,
        up: Maybe<Self>,
        targets: Arc<Vec<i64>>,
        precision: MixedPrecision,
    ) -> FlexTensor {
        let head = Weight::new(head.get(), quantized, precision, false);
        let added = [through, up].map(|tensor| tensor.get().map(dense));
        let loss = cross_entropy(&dense(hidden), &head, &added, &targets, [false; 4]);
        total(&loss)
    }

    fn column_norms(matrix: FlexTensor) -> FlexTensor {
        let matrix = dense(matrix);
        vector(layer::column_norms(numbers(&matrix), rows(&matrix).1))
    }

    fn linear_of_attention(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        mask: Maybe<Self>,
        segments: Option<Segments>,
        weight: Maybe<Self>,
        bias: Maybe<Self>,
        down: Maybe<Self>,
        up: Maybe<Self>,
        settings: Attention,
        layer: Layer,
    ) -> FlexTensor {
        let attended = Self::attention(query, key, value, mask, segments, settings);
        let absent = || Maybe::Absent;
        Self::linear(attended, absent(), absent(), weight, bias, down, up, layer)
    }

    fn attention(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        added: Maybe<Self>,
        segments: Option<Segments>,
        settings: Attention,
    ) -> FlexTensor {
        attend(&Attended {
            query: dense(query),
            key: items(key),
            value: items(value),
            mask: added.get().map(dense),
            segments,
            settings,
        })
    }
}

/// What a layer is applied to.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) data: &'a FlexTensor,
    /// What silu of the data gates, if that is what the layer sees.
    pub(super) gated: Option<&'a FlexTensor>,
    /// γ, if the layer sees the data normalised.
    pub(super) gamma: Option<&'a FlexTensor>,
    /// Whether the layer sees GELU of the data.
    pub(super) gelu: bool,
    /// Of the normalisation.
    pub(super) epsilon: f32,
    /// What A does not see of it.
    pub(super) coins: Option<Coins>,
}

/// What [`Fused::linear`] computes, with `x A`.
pub(super) fn linear(
    input: Input<'_>,
    weight: &Weight,
    bias: Option<&FlexTensor>,
    factors: Option<(&FlexTensor, &FlexTensor)>,
    scale: f32,
) -> (FlexTensor, FlexTensor, Sizes) {
    let (rows, d_in) = rows(input.data);
    let d_out = weight.widths().1;
    let sizes = Sizes { rows, d_in, d_out };
    let (data, side) = (numbers(input.data), weight.side(rows));
    let activated = match (input.gated, input.gamma) {
        (Some(gated), _) => Some(swiglu::forward(data, numbers(gated))),
        (None, Some(gamma)) => Some(rms::forward(data, numbers(gamma), input.epsilon)),
        // A dense layer does it block by block.
        _ if input.gelu && (matches!(side, Side::Quantized(..)) || input.coins.is_some()) => {
            Some(gelu::forward(data))
        }
        _ => None,
    };
    let seen = layer::Input {
        data: activated.as_deref().unwrap_or(data),
        gelu: input.gelu && activated.is_none(),
    };
    let (bias, factors) = (
        bias.map(numbers),
        factors.map(|(down, up)| low_rank(down, up, scale)),
    );
    let whole = factors.filter(|_| input.coins.is_none());
    let [mut output, mut through] = match side {
        Side::Dense(right) => layer::forward(sizes, seen, right, bias, whole),
        Side::Quantized(quantized, rounded) => {
            layer::forward_packed(sizes, seen.data, quantized, bias, whole, rounded)
        }
    };
    if let (Some(coins), Some(factors)) = (input.coins, factors) {
        let mut dropped = seen.data.to_vec();
        dropout::in_place(&mut dropped, coins);
        through = layer::add_low_rank(sizes, &mut output, &dropped, factors);
    }
    let shape = with_width(input.data.shape(), d_out);
    (tensor(output, shape), vector(through), sizes)
}

/// What [`Fused::linear_cross_entropy`] computes, with gradients.
pub(super) fn cross_entropy(
    hidden: &FlexTensor,
    head: &Weight,
    [through, up]: &[Option<FlexTensor>; 2],
    targets: &[i64],
    wanted: [bool; 4],
) -> Loss {
    let added = through.as_ref().zip(up.as_ref());
    let added = added.map(|(through, up)| Added {
        through: numbers(through),
        up: matrix(up),
    });
    let head = head.head(targets.len());
    cross_entropy::forward(numbers(hidden), head, added, targets, wanted)
}

/// The sum, `[1]`.
pub(super) fn total(loss: &Loss) -> FlexTensor {
    // In f64: a sum over many tokens.
    let total: f64 = loss.each.iter().map(|loss| f64::from(*loss)).sum();
    vector(vec![total as f32])
}

pub(super) fn add_low_rank(
    output: FlexTensor,
    input: &FlexTensor,
    down: &FlexTensor,
    up: &FlexTensor,
    scale: f32,
    coins: Option<Coins>,
) -> (FlexTensor, FlexTensor, Sizes) {
    let (rows, d_in) = rows(input);
    let d_out = self::rows(up).1;
    let sizes = Sizes { rows, d_in, d_out };
    let mut output = dense(output);
    let factors = low_rank(down, up, scale);
    let dropped = coins.map(|coins| {
        let mut dropped = numbers(input).to_vec();
        dropout::in_place(&mut dropped, coins);
        dropped
    });
    let seen = dropped.as_deref().unwrap_or(numbers(input));
    let through = layer::add_low_rank(sizes, output.storage_mut(), seen, factors);
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

//! The forward pass of a linear layer with adapters on its weight and bias.

use burn::nn::Linear;
use burn::tensor::{DType, Tensor};
use peft_ops::LowRank;

use crate::adapter::base::BaseLinear as _;
use crate::adapter::forward_context::ForwardContext;
use crate::attached::stack::Stack;
use crate::nn::base_layer::LinearBelow;
use crate::nn::mixture;
use crate::nn::place::Place;
use crate::nn::seen::Seen;
use crate::nn::vector::Vector;

/// The output of a linear layer, with the adapters on its weight and its bias.
pub(crate) fn linear<const D: usize>(
    layer: &Linear,
    seen: impl Seen<D>,
    context: &ForwardContext,
) -> Tensor<D> {
    let bias = layer.bias.as_ref().map(|bias| Vector::of(bias, context));
    let same = bias.as_ref().and_then(Vector::same);
    let output = match layer.weight.reparameterization::<Stack>() {
        Some(stack) if stack.merged.is_none() => {
            through(&Place::of(layer, stack, same), seen, context)
        }
        _ => seen.fused(layer.weight.val().into(), same, None),
    };
    match bias {
        Some(bias @ Vector::Varied(_)) => bias.add_to(output),
        _ => output,
    }
}

/// The output of a linear layer, adapters and all. A calibrator that asked for the layer's inputs gets them.
pub(crate) fn through<const D: usize>(
    place: &Place<'_>,
    seen: impl Seen<D>,
    context: &ForwardContext,
) -> Tensor<D> {
    let Some(recorder) = place.stack.recorder.upgrade() else {
        return through_seen(place, seen, context);
    };
    let input = seen.whole();
    recorder.record(place.as_rows(input.clone()));
    through_seen(place, input, context)
}

/// As [`through`], of an input that is not recorded, or was.
pub(crate) fn through_seen<const D: usize>(
    place: &Place<'_>,
    seen: impl Seen<D>,
    context: &ForwardContext,
) -> Tensor<D> {
    let stack = place.stack;
    if let Some(merged) = &stack.merged {
        return seen.fused(merged.get::<2>().into(), place.bias.clone(), None);
    }
    if let Some(kept) = place.kept() {
        return seen.fused(kept.into(), place.bias.clone(), None);
    }
    if let Some(factors) = place.low_rank() {
        let factors = side_by_side(factors, seen.dtype());
        return seen.fused(place.weight(), place.bias.clone(), factors);
    }
    if let Some(mixture) = stack.mixed() {
        return mixture::linear(place, mixture, seen.whole(), context, through_seen);
    }
    let input = seen.whole();
    let mut shape = input.dims();
    let batch = shape[0];
    let [_, d_out] = place.base.dims();
    let rows = place.as_rows(input);
    let place = place.clone().composed();
    let base = LinearBelow {
        base: place.base,
        quantized: place.quantized.as_ref(),
        bias: place.bias,
        norms: &place.norms,
        context,
        batch,
        below: &stack.active_weights(),
    };
    shape[D - 1] = d_out;
    base.forward(rows).reshape(shape)
}

/// Low-rank additions as one, scales folded in, in the input's number format: each adapter has its own.
pub(crate) fn side_by_side(mut factors: Vec<LowRank>, dtype: DType) -> Option<LowRank> {
    if factors.len() < 2 {
        return factors.pop();
    }
    let (down, up) = factors
        .into_iter()
        .map(|factors| factors.cast(dtype))
        .map(
            |LowRank {
                 down, up, scale, ..
             }| (down, up * scale),
        )
        .unzip();
    Some(LowRank {
        down: Tensor::cat(down, 1),
        up: Tensor::cat(up, 0),
        scale: 1.0,
        dropout: 0.0,
    })
}

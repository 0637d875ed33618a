//! The loss of an output head, without all logits in memory where that can be.

use burn::nn::Linear;
use burn::tensor::Tensor;
use peft_ops::Weight;

use crate::adapter::base::BaseLinear as _;
use crate::adapter::forward_context::ForwardContext;
use crate::adapter::routing::Routing;
use crate::attached::composition::{Mixture, Parts, PerRow};
use crate::attached::stack::Stack;
use crate::nn::base_layer::LinearBelow;
use crate::nn::layers::AdaptedForward as _;
use crate::nn::linear::{side_by_side, through_seen};
use crate::nn::place::Place;

/// The sum of the negative log likelihoods of `targets` under an output head `[d, classes]`, adapters and all:
/// as [`ops::linear_cross_entropy`](crate::ops::linear_cross_entropy) of `head.adapted(hidden)`.
///
/// Low-rank adapters cost no matrix of the head's size. Others that are changes of the weight are folded into one
/// dense matrix for it, without their input dropout. All logits are formed only where the head has a bias, or an
/// adapter adds more than a weight can.
pub fn adapted_cross_entropy(
    head: &Linear,
    hidden: Tensor<2>,
    targets: &[i64],
    context: &ForwardContext,
) -> Tensor<1> {
    let stack = head.weight.reparameterization::<Stack>();
    if head.bias.is_some() {
        let logits = match stack.and_then(Stack::mixed) {
            Some(mixture) => logits_of_rows(mixture, hidden, context, |hidden| {
                head.adapted_in(hidden, context)
            }),
            None => head.adapted_in(hidden, context),
        };
        return peft_ops::reference::cross_entropy(logits, targets);
    }
    if let Some(stack) = stack {
        return cross_entropy(&Place::of(head, stack, None), hidden, targets, context);
    }
    let rows = head.weight.val().transpose();
    peft_ops::linear_cross_entropy(hidden, rows, targets)
}

/// Logits `[tokens, classes]` of hidden states `[tokens, d]`, by a head that takes `[batch, seq, d]`.
fn logits_of_rows(
    mixture: &Mixture,
    hidden: Tensor<2>,
    context: &ForwardContext,
    head: impl Fn(Tensor<3>) -> Tensor<3>,
) -> Tensor<2> {
    let [count, d] = hidden.dims();
    // Each row of the batch has as many positions.
    let rows = match &mixture.parts {
        Parts::PerRow(rows) => rows.count(),
        Parts::Routed(_) => context.routing().and_then(Routing::rows).unwrap_or(1),
        Parts::Blend(blend) => blend.rows.as_ref().map_or(1, PerRow::count),
        Parts::Weighted(_) | Parts::Tree(_) => 1,
    };
    let logits = head(hidden.reshape([rows as isize, -1, d as isize]));
    let classes = logits.dims()[2];
    logits.reshape([count, classes])
}

/// As [`adapted_cross_entropy`], of a head without a bias.
pub(crate) fn cross_entropy(
    place: &Place<'_>,
    hidden: Tensor<2>,
    targets: &[i64],
    context: &ForwardContext,
) -> Tensor<1> {
    let stack = place.stack;
    if let Some(recorder) = stack.recorder.upgrade() {
        recorder.record(hidden.clone());
    }
    if let Some(merged) = &stack.merged {
        let rows = merged.get::<2>().transpose();
        return peft_ops::linear_cross_entropy(hidden, rows, targets);
    }
    if let Some(kept) = place.kept() {
        return peft_ops::linear_cross_entropy(hidden, kept.transpose(), targets);
    }
    let rows_of = |weight| match weight {
        Weight::Dense(weight) => Weight::Dense(weight.transpose()),
        quantized @ Weight::Quantized(_) => quantized,
    };
    if let Some(factors) = place.low_rank() {
        let low_rank = side_by_side(factors, hidden.dtype());
        let rows = rows_of(place.weight());
        return peft_ops::linear_cross_entropy_with(hidden, rows, low_rank, targets);
    }
    if let Some(mixture) = stack.mixed() {
        let logits = logits_of_rows(mixture, hidden, context, |hidden| {
            through_seen(place, hidden, context)
        });
        return peft_ops::reference::cross_entropy(logits, targets);
    }
    let adapters = stack.active_weights();
    let beyond = adapters.iter().any(|adapter| !adapter.is_mergeable());
    if beyond {
        let logits = through_seen(place, hidden, context);
        return peft_ops::reference::cross_entropy(logits, targets);
    }
    let place = place.clone().composed();
    let base = LinearBelow {
        base: place.base,
        quantized: place.quantized.as_ref(),
        bias: None,
        norms: &place.norms,
        context,
        batch: hidden.dims()[0],
        below: &adapters,
    };
    peft_ops::linear_cross_entropy(hidden, base.weight().transpose(), targets)
}

//! The operations on tensors that record their gradients.
//!
//! What is kept is exactly what some tracked input's gradient needs: a frozen weight keeps no input, a
//! frozen input no weight.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex, TensorMetadata};
use burn_flex::FlexTensor;

use super::backward::{
    Added, Dropped, Gated, Linear, LinearOfAttended, Lost, Normalised, OfGelu, RmsNormalised,
    Rotated, Scattered,
};
use super::forward::{Input, add_low_rank, attend, cross_entropy, linear, norm, total};
use super::kept::{Attended, Kept};
use super::tensors::{affine, dense, rows, tensor, vector};
use super::weight::Weight;
use super::{Fused, Layer, Maybe};
use crate::cpu::attention::Attention;
use crate::cpu::dropout::Coins;
use crate::cpu::gelu;
use crate::cpu::sparse::Pattern;
use crate::options::MixedPrecision;
use crate::quantized::QuantizedWeight;
use crate::segments::Segments;

/// The backward pass of an operation that keeps `S`.
#[derive(Debug)]
struct Step<S>(PhantomData<S>);

impl<S: Kept<N>, const N: usize> Backward<Flex, N> for Step<S> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = dense(grads.consume::<Flex>(&ops.node));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = ops.state.gradients(gradient, wanted);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

/// The output, recorded with what is kept if an input is tracked.
pub(super) fn record<C: CheckpointStrategy, S: Kept<N>, const N: usize>(
    inputs: [NodeGuard; N],
    output: FlexTensor,
    keep: impl FnOnce() -> S,
) -> Tracked {
    let step = Step(PhantomData).prepare::<C>(inputs);
    match step.compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish(keep(), output),
        OpsKind::UnTracked(step) => step.finish(output),
    }
}

pub(super) type Tracked = FloatTensor<Autodiff<Flex>>;

/// An input that stands for an absent one: it is not tracked, so the graph does not see it.
pub(super) fn present(tensor: Option<Tracked>) -> Tracked {
    tensor.unwrap_or_else(|| Tracked::new(vector(Vec::new())))
}

impl<C: CheckpointStrategy> Fused for Autodiff<Flex, C> {
    fn linear(
        input: Tracked,
        gated: Maybe<Self>,
        gamma: Maybe<Self>,
        weight: Maybe<Self>,
        bias: Maybe<Self>,
        down: Maybe<Self>,
        up: Maybe<Self>,
        layer: Layer,
    ) -> Tracked {
        let others = [gated, gamma, weight, bias, down, up].map(Maybe::get);
        let there = others.each_ref().map(Option::is_some);
        let [gated, gamma, weight, bias, down, up] = others.map(present);
        let inputs = [input, gated, gamma, weight, bias, down, up];
        let [of_input, of_gated, of_gamma, of_weight, _, of_down, of_up] =
            inputs.each_ref().map(Tracked::is_tracked);
        let parts = inputs.map(Tracked::into_parts);
        let part = |index: usize| there[index - 1].then(|| parts[index].0.clone());
        let input = dense(parts[0].0.clone());
        let [gated, gamma, bias, down, up] = [1, 2, 4, 5, 6].map(|index| part(index).map(dense));
        let weight = Weight::new(part(3), layer.quantized, layer.precision, of_weight);
        let seen = Input {
            data: &input,
            gated: gated.as_ref(),
            gamma: gamma.as_ref(),
            gelu: layer.gelu,
            epsilon: layer.epsilon,
            coins: layer.coins,
        };
        let factors = down.as_ref().zip(up.as_ref());
        let (output, through, sizes) = linear(seen, &weight, bias.as_ref(), factors, layer.scale);
        let activated = layer.gelu || gated.is_some() || gamma.is_some();
        record::<C, _, 7>(parts.map(|(_, node)| node), output, || {
            let through_input = of_input || of_gated || of_gamma;
            let keeps = of_weight || of_down || activated && through_input;
            Linear {
                sizes,
                scale: layer.scale,
                input_shape: input.shape(),
                rank: down.as_ref().map_or(0, |down| rows(down).1),
                gelu: layer.gelu,
                input: keeps.then_some(input),
                gated: gated.filter(|_| keeps),
                gamma: gamma.filter(|_| keeps),
                epsilon: layer.epsilon,
                coins: layer.coins,
                weight: through_input.then_some(weight),
                down: down.filter(|_| through_input),
                up: up.filter(|_| through_input || of_down),
                through: of_up.then_some(through),
            }
        })
    }

    fn add_low_rank(
        output: Tracked,
        input: Tracked,
        down: Tracked,
        up: Tracked,
        scale: f32,
        coins: Option<Coins>,
    ) -> Tracked {
        let [of_input, of_down, of_up] = [&input, &down, &up].map(Tracked::is_tracked);
        let (output, n0) = output.into_parts();
        let [(input, n1), (down, n2), (up, n3)] = [input, down, up].map(Tracked::into_parts);
        let [input, down, up] = [input, down, up].map(dense);
        let (output, through, sizes) = add_low_rank(output, &input, &down, &up, scale, coins);
        record::<C, _, 4>([n0, n1, n2, n3], output, || {
            Added(Linear {
                sizes,
                scale,
                input_shape: input.shape(),
                rank: rows(&down).1,
                gelu: false,
                input: of_down.then_some(input),
                gated: None,
                gamma: None,
                epsilon: 0.0,
                coins,
                weight: None,
                down: of_input.then_some(down),
                up: (of_input || of_down).then_some(up),
                through: of_up.then_some(through),
            })
        })
    }

    fn add_sparse(
        output: Tracked,
        input: Tracked,
        values: Tracked,
        pattern: Arc<Pattern>,
    ) -> Tracked {
        let [of_input, of_values] = [&input, &values].map(Tracked::is_tracked);
        let [(output, n0), (input, n1), (values, n2)] =
            [output, input, values].map(Tracked::into_parts);
        let (input, values) = (dense(input), dense(values));
        let output = Flex::add_sparse(output, input.clone(), values.clone(), pattern.clone());
        record::<C, _, 3>([n0, n1, n2], output, || Scattered {
            input_shape: input.shape(),
            input: of_values.then_some(input),
            values: of_input.then_some(values),
            pattern,
        })
    }

    fn gelu(input: Tracked) -> Tracked {
        let tracked = input.is_tracked();
        let (input, node) = input.into_parts();
        if !tracked {
            return Tracked::new(Flex::gelu(input));
        }
        let input = dense(input);
        let output = gelu::forward(super::tensors::numbers(&input));
        let output = tensor(output, input.shape());
        record::<C, _, 1>([node], output, || OfGelu(input))
    }

    fn dropout(input: Tracked, coins: Coins) -> Tracked {
        let (input, node) = input.into_parts();
        record::<C, _, 1>([node], Flex::dropout(input, coins), || Dropped(coins))
    }

    fn layer_norm(
        input: Tracked,
        residual: Maybe<Self>,
        gamma: Tracked,
        beta: Maybe<Self>,
        epsilon: f32,
        coins: Option<Coins>,
    ) -> Tracked {
        let (residual, beta) = (residual.get(), beta.get());
        let (has_residual, has_beta) = (residual.is_some(), beta.is_some());
        let inputs = [input, present(residual), gamma, present(beta)];
        let tracked = inputs.iter().any(Tracked::is_tracked);
        let [(input, n0), (residual, n1), (gamma, n2), (beta, n3)] =
            inputs.map(Tracked::into_parts);
        let (gamma, beta) = (dense(gamma), has_beta.then(|| dense(beta)));
        let (output, sum) = norm(
            input,
            has_residual.then_some(residual),
            affine(&gamma, beta.as_ref(), epsilon),
            coins,
            tracked,
        );
        record::<C, _, 4>([n0, n1, n2, n3], output, || Normalised {
            sum: sum.expect("kept, as some input is tracked"),
            gamma,
            epsilon,
            coins,
        })
    }

    fn rms_norm(input: Tracked, gamma: Tracked, epsilon: f32) -> Tracked {
        let [(input, n0), (gamma, n1)] = [input, gamma].map(Tracked::into_parts);
        let (input, gamma) = (dense(input), dense(gamma));
        let output = Flex::rms_norm(input.clone(), gamma.clone(), epsilon);
        record::<C, _, 2>([n0, n1], output, || RmsNormalised {
            input,
            gamma,
            epsilon,
        })
    }

    fn rotary(input: Tracked, cos: Tracked, sin: Tracked, heads: usize) -> Tracked {
        let (input, node) = input.into_parts();
        let [cos, sin] = [cos, sin].map(|angles| dense(angles.into_primitive()));
        let output = Flex::rotary(input, cos.clone(), sin.clone(), heads);
        record::<C, _, 1>([node], output, || Rotated { cos, sin, heads })
    }

    fn swiglu(gate: Tracked, up: Tracked) -> Tracked {
        let [(gate, n0), (up, n1)] = [gate, up].map(Tracked::into_parts);
        let (gate, up) = (dense(gate), dense(up));
        let output = Flex::swiglu(gate.clone(), up.clone());
        record::<C, _, 2>([n0, n1], output, || Gated { gate, up })
    }

    fn linear_cross_entropy(
        hidden: Tracked,
        head: Maybe<Self>,
        quantized: Option<QuantizedWeight>,
        through: Maybe<Self>,
        up: Maybe<Self>,
        targets: Arc<Vec<i64>>,
        precision: MixedPrecision,
    ) -> Tracked {
        let others = [head, through, up].map(Maybe::get);
        let [has_head, is_added, _] = others.each_ref().map(Option::is_some);
        let [head, through, up] = others.map(present);
        let inputs = [hidden, head, through, up];
        let wanted = inputs.each_ref().map(Tracked::is_tracked);
        let [(hidden, n0), (head, n1), (through, n2), (up, n3)] = inputs.map(Tracked::into_parts);
        let (hidden, head) = (
            dense(hidden),
            Weight::new(has_head.then_some(head), quantized, precision, wanted[1]),
        );
        let added = [through, up].map(|tensor| is_added.then(|| dense(tensor)));
        let loss = cross_entropy(&hidden, &head, &added, &targets, wanted);
        let output = total(&loss);
        record::<C, _, 4>([n0, n1, n2, n3], output, || {
            let shaped = |data: Option<Vec<f32>>, width: usize| {
                data.map(|data| {
                    let rows = data.len() / width;
                    tensor(data, [rows, width].into())
                })
            };
            let width = rows(&hidden).1;
            let [rank, classes] = added.map(|tensor| tensor.map_or(1, |tensor| rows(&tensor).1));
            Lost([
                shaped(loss.d_hidden, width),
                shaped(loss.d_head, width),
                shaped(loss.d_through, rank),
                shaped(loss.d_up, classes),
            ])
        })
    }

    fn column_norms(matrix: Tracked) -> Tracked {
        Tracked::new(Flex::column_norms(matrix.into_primitive()))
    }

    fn linear_of_attention(
        query: Tracked,
        key: Tracked,
        value: Tracked,
        mask: Maybe<Self>,
        segments: Option<Segments>,
        weight: Maybe<Self>,
        bias: Maybe<Self>,
        down: Maybe<Self>,
        up: Maybe<Self>,
        settings: Attention,
        layer: Layer,
    ) -> Tracked {
        let through = query.is_tracked() || key.is_tracked() || value.is_tracked();
        if !through {
            // Nothing of it is kept otherwise, so its output, which is smaller, may be.
            let attended = Self::attention(query, key, value, mask, segments, settings);
            let absent = || Maybe::Absent;
            return Self::linear(attended, absent(), absent(), weight, bias, down, up, layer);
        }
        let others = [weight, bias, down, up].map(Maybe::get);
        let there = others.each_ref().map(Option::is_some);
        let [weight, bias, down, up] = others.map(present);
        let inputs = [query, key, value, weight, bias, down, up];
        let [of_weight, of_up] = [3, 6].map(|index| inputs[index].is_tracked());
        let parts = inputs.map(Tracked::into_parts);
        let part = |index: usize| there[index - 3].then(|| parts[index].0.clone());
        let [query, key, value] = [0, 1, 2].map(|index| dense(parts[index].0.clone()));
        let attended = Attended {
            query,
            key,
            value,
            mask: mask.get().map(|mask| dense(mask.into_primitive())),
            segments,
            settings,
        };
        let [bias, down, up] = [4, 5, 6].map(|index| part(index).map(dense));
        let weight = Weight::new(part(3), layer.quantized, layer.precision, of_weight);
        let input = attend(&attended);
        let seen = Input {
            data: &input,
            gated: None,
            gamma: None,
            gelu: false,
            epsilon: 0.0,
            coins: layer.coins,
        };
        let factors = down.as_ref().zip(up.as_ref());
        let (output, through, sizes) = linear(seen, &weight, bias.as_ref(), factors, layer.scale);
        record::<C, _, 7>(parts.map(|(_, node)| node), output, || LinearOfAttended {
            linear: Linear {
                sizes,
                scale: layer.scale,
                input_shape: input.shape(),
                rank: down.as_ref().map_or(0, |down| rows(down).1),
                gelu: false,
                input: None,
                gated: None,
                gamma: None,
                epsilon: 0.0,
                coins: layer.coins,
                weight: Some(weight),
                down,
                up,
                through: of_up.then_some(through),
            },
            attended,
        })
    }

    fn attention(
        query: Tracked,
        key: Tracked,
        value: Tracked,
        mask: Maybe<Self>,
        segments: Option<Segments>,
        settings: Attention,
    ) -> Tracked {
        let [(query, n0), (key, n1), (value, n2)] = [query, key, value].map(Tracked::into_parts);
        let kept = Attended {
            query: dense(query),
            key: dense(key),
            value: dense(value),
            mask: mask.get().map(|mask| dense(mask.into_primitive())),
            segments,
            settings,
        };
        let output = attend(&kept);
        record::<C, _, 3>([n0, n1, n2], output, || kept)
    }
}

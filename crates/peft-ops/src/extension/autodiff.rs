//! The operations on tensors that record their gradients.
//!
//! What is kept is exactly what some tracked input's gradient needs: a frozen weight keeps no input, a
//! frozen input no weight.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex, TensorMetadata};
use burn_flex::FlexTensor;

use super::backward::{Added, Attended, Dropped, Linear, Normalised, OfGelu};
use super::forward::{add_low_rank, attend, linear, norm};
use super::tensors::{affine, dense, rows, tensor, vector, weight};
use super::{Fused, Maybe};
use crate::cpu::attention::Attention;
use crate::cpu::dropout::Coins;
use crate::cpu::gelu;

/// What an operation of `N` inputs keeps for its backward pass.
pub(super) trait Kept<const N: usize>: Clone + Debug + Send + 'static {
    /// Gradients of the inputs that are `wanted`, from the output's, which is dense.
    fn gradients(self, gradient: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N];
}

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
fn record<C: CheckpointStrategy, S: Kept<N>, const N: usize>(
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

type Tracked = FloatTensor<Autodiff<Flex>>;

/// An input that stands for an absent one: it is not tracked, so the graph does not see it.
fn present(tensor: Option<Tracked>) -> Tracked {
    tensor.unwrap_or_else(|| Tracked::new(vector(Vec::new())))
}

impl<C: CheckpointStrategy> Fused for Autodiff<Flex, C> {
    fn linear(
        input: Tracked,
        weight: Tracked,
        bias: Maybe<Self>,
        down: Maybe<Self>,
        up: Maybe<Self>,
        scale: f32,
        gelu: bool,
    ) -> Tracked {
        let (bias, down, up) = (bias.get(), down.get(), up.get());
        let has_bias = bias.is_some();
        let has_factors = down.is_some();
        let inputs = [input, weight, present(bias), present(down), present(up)];
        let [of_input, of_weight, _, of_down, of_up] = inputs.each_ref().map(Tracked::is_tracked);
        let parts = inputs.map(Tracked::into_parts);
        let part = |index: usize| parts[index].0.clone();
        let (input, weight) = (dense(part(0)), self::weight(part(1)));
        let [bias, down, up] = [2, 3, 4].map(|index| dense(part(index)));
        let (output, through, sizes) = linear(
            &input,
            &weight,
            has_bias.then_some(&bias),
            has_factors.then_some((&down, &up)),
            scale,
            gelu,
        );
        record::<C, _, 5>(parts.map(|(_, node)| node), output, || Linear {
            sizes,
            scale,
            input_shape: input.shape(),
            rank: if has_factors { rows(&down).1 } else { 0 },
            gelu,
            input: (of_weight || of_down || gelu && of_input).then_some(input),
            weight: of_input.then_some(weight),
            down: (has_factors && of_input).then_some(down),
            up: (has_factors && (of_input || of_down)).then_some(up),
            through: of_up.then_some(through),
        })
    }

    fn add_low_rank(
        output: Tracked,
        input: Tracked,
        down: Tracked,
        up: Tracked,
        scale: f32,
    ) -> Tracked {
        let [of_input, of_down, of_up] = [&input, &down, &up].map(Tracked::is_tracked);
        let (output, n0) = output.into_parts();
        let [(input, n1), (down, n2), (up, n3)] = [input, down, up].map(Tracked::into_parts);
        let [input, down, up] = [input, down, up].map(dense);
        let (output, through, sizes) = add_low_rank(output, &input, &down, &up, scale);
        record::<C, _, 4>([n0, n1, n2, n3], output, || {
            Added(Linear {
                sizes,
                scale,
                input_shape: input.shape(),
                rank: rows(&down).1,
                gelu: false,
                input: of_down.then_some(input),
                weight: None,
                down: of_input.then_some(down),
                up: (of_input || of_down).then_some(up),
                through: of_up.then_some(through),
            })
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

    fn column_norms(matrix: Tracked) -> Tracked {
        Tracked::new(Flex::column_norms(matrix.into_primitive()))
    }

    fn attention(
        query: Tracked,
        key: Tracked,
        value: Tracked,
        mask: Maybe<Self>,
        settings: Attention,
    ) -> Tracked {
        let [(query, n0), (key, n1), (value, n2)] = [query, key, value].map(Tracked::into_parts);
        let kept = Attended {
            query: dense(query),
            key: dense(key),
            value: dense(value),
            mask: mask.get().map(|mask| dense(mask.into_primitive())),
            settings,
        };
        let output = attend(&kept);
        record::<C, _, 3>([n0, n1, n2], output, || kept)
    }
}

//! The fused operations as operations of Burn's CPU backend, with handwritten backward passes.
//!
//! What is kept for the backward pass is exactly what some tracked input's gradient needs: a frozen
//! weight keeps no input, a frozen input no weight.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, ExtensionType, Flex, TensorMetadata, backend_extension,
};
use burn::tensor::{DType, Shape, TensorData};
use burn_flex::FlexTensor;

use crate::cpu::attention::{Attention, Inputs, Mask};
use crate::cpu::dropout::{self, Coins};
use crate::cpu::gelu;
use crate::cpu::linear::{self, LowRank, Sizes};
use crate::cpu::matrix::Matrix;
use crate::cpu::norm::{self, Affine};

/// A tensor that may be absent.
#[derive(ExtensionType)]
pub(crate) enum Maybe<B: Backend> {
    Given(FloatTensor<B>),
    Absent,
}

impl<B: Backend> Maybe<B> {
    fn get(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Given(tensor) => Some(tensor),
            Self::Absent => None,
        }
    }
}

impl From<Option<FloatTensor<Dispatch>>> for Maybe<Dispatch> {
    fn from(tensor: Option<FloatTensor<Dispatch>>) -> Self {
        tensor.map_or(Self::Absent, Self::Given)
    }
}

/// Tensors are `f32` and on Burn's CPU backend; the caller has checked that.
#[backend_extension(Autodiff, Flex)]
pub(crate) trait Fused: Backend {
    /// `x W + b + s·(x A) B`, where x is the input or GELU of it; `down` and `up` are there both or
    /// neither.
    fn linear(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Maybe<Self>,
        #[extension_type] down: Maybe<Self>,
        #[extension_type] up: Maybe<Self>,
        scale: f32,
        gelu: bool,
    ) -> FloatTensor<Self>;

    /// `y + s·(x A) B`, in the memory of `y` where nothing else holds it.
    fn add_low_rank(
        output: FloatTensor<Self>,
        input: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// `x·Φ(x)`.
    fn gelu(input: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Every element multiplied by its factor.
    fn dropout(input: FloatTensor<Self>, coins: Coins) -> FloatTensor<Self>;

    /// `norm(drop(x) + residual)·γ + β` over the last dimension.
    fn layer_norm(
        input: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        gamma: FloatTensor<Self>,
        #[extension_type] beta: Maybe<Self>,
        epsilon: f32,
        coins: Option<Coins>,
    ) -> FloatTensor<Self>;

    /// Attention of heads that are blocks of columns.
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        #[extension_type] mask: Maybe<Self>,
        settings: Attention,
    ) -> FloatTensor<Self>;
}

/// The numbers of a tensor that [`dense`] made.
fn numbers(tensor: &FlexTensor) -> &[f32] {
    tensor.storage()
}

/// The tensor, row-major and with nothing else in its memory.
fn dense(tensor: FlexTensor) -> FlexTensor {
    debug_assert_eq!(tensor.dtype(), DType::F32);
    tensor.to_contiguous()
}

/// A weight as it is in memory: a transposed one is not copied.
fn weight(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().strides().iter().all(|stride| *stride >= 0) {
        tensor
    } else {
        dense(tensor)
    }
}

/// The matrix of a tensor that [`weight`] made.
fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let (layout, shape) = (tensor.layout(), tensor.shape());
    let stride = |axis: usize| layout.strides()[axis].unsigned_abs();
    let data: &[f32] = tensor.storage();
    Matrix::view(
        &data[layout.start_offset()..],
        [shape[0], shape[1]],
        [stride(0), stride(1)],
    )
}

fn tensor(data: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, shape))
}

fn vector(data: Vec<f32>) -> FlexTensor {
    let shape = Shape::from([data.len()]);
    tensor(data, shape)
}

/// Rows, and the width of the last dimension.
fn rows(tensor: &FlexTensor) -> (usize, usize) {
    let shape = tensor.shape();
    let width = shape[shape.num_dims() - 1];
    (shape.num_elements() / width.max(1), width)
}

/// The shape with another last dimension.
fn with_width(mut shape: Shape, width: usize) -> Shape {
    let last = shape.num_dims() - 1;
    shape[last] = width;
    shape
}

fn low_rank<'a>(down: &'a FlexTensor, up: &'a FlexTensor, scale: f32) -> LowRank<'a> {
    LowRank {
        down: numbers(down),
        up: numbers(up),
        rank: rows(down).1,
        scale,
    }
}

/// What [`Fused::linear`] computes, with `x A`.
fn linear_forward(
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
    let [output, through] = linear::forward(
        sizes,
        linear::Input { data, gelu },
        matrix(weight),
        bias.map(numbers),
        factors.map(|(down, up)| low_rank(down, up, scale)),
    );
    let shape = with_width(input.shape(), d_out);
    (tensor(output, shape), vector(through), sizes)
}

fn add_low_rank_forward(
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
    let through = linear::add_low_rank(sizes, output.storage_mut(), numbers(input), factors);
    (output, vector(through), sizes)
}

/// What [`Fused::layer_norm`] computes, and what was normalised if that is `kept`.
fn norm_forward(
    input: FlexTensor,
    residual: Option<FlexTensor>,
    affine: Affine<'_>,
    coins: Option<Coins>,
    kept: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    let (input, residual) = (dense(input), residual.map(dense));
    // The input itself is what is normalised where nothing is done to it before.
    let summed = residual.is_some() || coins.is_some();
    let [output, sum] = norm::forward(
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

fn affine<'a>(gamma: &'a FlexTensor, beta: Option<&'a FlexTensor>, epsilon: f32) -> Affine<'a> {
    Affine {
        gamma: numbers(gamma),
        beta: beta.map(numbers),
        epsilon,
    }
}

fn mask(mask: Option<&FlexTensor>) -> Option<Mask<'_>> {
    mask.map(|mask| Mask {
        values: numbers(mask),
        rows: mask.shape()[1],
    })
}

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
        linear_forward(&input, &weight, bias.as_ref(), factors, scale, gelu).0
    }

    fn add_low_rank(
        output: FlexTensor,
        input: FlexTensor,
        down: FlexTensor,
        up: FlexTensor,
        scale: f32,
    ) -> FlexTensor {
        let (input, down, up) = (dense(input), dense(down), dense(up));
        add_low_rank_forward(output, &input, &down, &up, scale).0
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
        norm_forward(input, residual.get(), affine, coins, false).0
    }

    fn attention(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        added: Maybe<Self>,
        settings: Attention,
    ) -> FlexTensor {
        let (query, key, value) = (dense(query), dense(key), dense(value));
        let added = added.get().map(dense);
        let output = settings.forward(Inputs {
            query: numbers(&query),
            key: numbers(&key),
            value: numbers(&value),
            mask: mask(added.as_ref()),
        });
        tensor(output, query.shape())
    }
}

type Tracked = FloatTensor<Autodiff<Flex>>;

/// A parent that stands for an absent input: it is not tracked, so the graph does not see it.
fn present(tensor: Option<Tracked>) -> Tracked {
    tensor.unwrap_or_else(|| Tracked::new(vector(Vec::new())))
}

#[derive(Clone, Debug)]
struct LinearState {
    sizes: Sizes,
    scale: f32,
    input_shape: Shape,
    /// Whether the layer saw GELU of its input.
    gelu: bool,
    /// For the gradients of W and A, and through GELU.
    input: Option<FlexTensor>,
    /// For the gradient of x.
    weight: Option<FlexTensor>,
    /// For the gradient of x.
    down: Option<FlexTensor>,
    /// For the gradients of x and A.
    up: Option<FlexTensor>,
    /// x A, for the gradient of B.
    through: Option<FlexTensor>,
    rank: usize,
}

/// Gradients of x, W, b, A and B, those that are `wanted`.
fn linear_gradients(
    wanted: [bool; 5],
    state: LinearState,
    gradient: &FlexTensor,
) -> [Option<FlexTensor>; 5] {
    let [of_input, of_weight, of_bias, of_down, of_up] = wanted;
    let LinearState {
        sizes, scale, rank, ..
    } = state;
    let Sizes { rows, d_in, d_out } = sizes;
    let dy = numbers(gradient);
    let d_up = state.through.filter(|_| of_up).map(|through| {
        let data = linear::outer(numbers(&through), dy, rows, scale);
        tensor(data, [rank, d_out].into())
    });
    let d_bias = of_bias.then(|| vector(linear::column_sums(dy, d_out)));
    // dy Bᵀ·s comes with the input's gradient, or alone.
    let (d_input, back) = if of_input {
        let factors = state.down.as_ref().zip(state.up.as_ref());
        let input = state.input.as_ref().filter(|_| state.gelu);
        let [d_input, back] = linear::input_gradient(
            sizes,
            dy,
            state.weight.as_ref().map(matrix),
            factors.map(|(down, up)| low_rank(down, up, scale)),
            input.map(numbers),
        );
        (Some(tensor(d_input, state.input_shape)), Some(back))
    } else {
        let up = state.up.filter(|_| of_down);
        let back = up.map(|up| linear::low_rank_gradient(sizes, dy, numbers(&up), rank, scale));
        (None, back)
    };
    // GELU is computed again rather than kept.
    let seen = state.input.filter(|_| of_weight || of_down).map(|input| {
        if state.gelu {
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

#[derive(Debug)]
struct LinearBackward;

impl Backward<Flex, 5> for LinearBackward {
    type State = LinearState;

    fn backward(
        self,
        ops: Ops<Self::State, 5>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = dense(grads.consume::<Flex>(&ops.node));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = linear_gradients(wanted, ops.state, &gradient);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct AddLowRankBackward;

impl Backward<Flex, 4> for AddLowRankBackward {
    type State = LinearState;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = dense(grads.consume::<Flex>(&ops.node));
        let [output, input, down, up] = ops.parents.each_ref().map(Option::is_some);
        let [d_input, _, _, d_down, d_up] =
            linear_gradients([input, false, false, down, up], ops.state, &gradient);
        let gradients = [output.then_some(gradient), d_input, d_down, d_up];
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct GeluBackward;

impl Backward<Flex, 1> for GeluBackward {
    type State = FlexTensor;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let mut gradient = dense(grads.consume::<Flex>(&ops.node));
        let [input] = ops.parents;
        if let Some(node) = input {
            gelu::backward_in_place(numbers(&ops.state), gradient.storage_mut());
            grads.register::<Flex>(node.id, gradient);
        }
    }
}

#[derive(Debug)]
struct DropoutBackward;

impl Backward<Flex, 1> for DropoutBackward {
    type State = Coins;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = grads.consume::<Flex>(&ops.node);
        let [input] = ops.parents;
        if let Some(node) = input {
            grads.register::<Flex>(node.id, Flex::dropout(gradient, ops.state));
        }
    }
}

#[derive(Clone, Debug)]
struct NormState {
    /// What was normalised.
    sum: FlexTensor,
    gamma: FlexTensor,
    epsilon: f32,
    coins: Option<Coins>,
}

#[derive(Debug)]
struct NormBackward;

impl Backward<Flex, 4> for NormBackward {
    type State = NormState;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let [input, residual, gamma, beta] = ops.parents;
        let state = ops.state;
        let mut gradient = dense(grads.consume::<Flex>(&ops.node));
        let affine = affine(&state.gamma, None, state.epsilon);
        let sum = numbers(&state.sum);
        if gamma.is_some() || beta.is_some() {
            let (d_gamma, d_beta) = norm::affine_gradients(sum, affine, numbers(&gradient));
            for (node, data) in [(gamma, d_gamma), (beta, d_beta)] {
                if let Some(node) = node {
                    grads.register::<Flex>(node.id, vector(data));
                }
            }
        }
        if input.is_none() && residual.is_none() {
            return;
        }
        norm::backward_in_place(sum, affine, gradient.storage_mut());
        if let Some(node) = residual {
            grads.register::<Flex>(node.id, gradient.clone());
        }
        if let Some(node) = input {
            let gradient = match state.coins {
                Some(coins) => Flex::dropout(gradient, coins),
                None => gradient,
            };
            grads.register::<Flex>(node.id, gradient);
        }
    }
}

#[derive(Clone, Debug)]
struct AttentionState {
    query: FlexTensor,
    key: FlexTensor,
    value: FlexTensor,
    mask: Option<FlexTensor>,
    settings: Attention,
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, 3> for AttentionBackward {
    type State = AttentionState;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let gradient = dense(grads.consume::<Flex>(&ops.node));
        let inputs = Inputs {
            query: numbers(&state.query),
            key: numbers(&state.key),
            value: numbers(&state.value),
            mask: mask(state.mask.as_ref()),
        };
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = state.settings.backward(inputs, numbers(&gradient), wanted);
        let shapes = [&state.query, &state.key, &state.value].map(TensorMetadata::shape);
        for ((node, data), shape) in ops.parents.into_iter().zip(gradients).zip(shapes) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(data, shape));
            }
        }
    }
}

impl<C: CheckpointStrategy> Fused for Autodiff<Flex, C> {
    fn linear(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Maybe<Self>,
        down: Maybe<Self>,
        up: Maybe<Self>,
        scale: f32,
        gelu: bool,
    ) -> FloatTensor<Self> {
        let (bias, down, up) = (bias.get(), down.get(), up.get());
        let has_bias = bias.is_some();
        let has_factors = down.is_some();
        let parents = [input, weight, present(bias), present(down), present(up)];
        let [of_input, of_weight, _, of_down, of_up] = parents.each_ref().map(Tracked::is_tracked);
        let parts = parents.map(Tracked::into_parts);
        let part = |index: usize| parts[index].0.clone();
        let (input, weight) = (dense(part(0)), self::weight(part(1)));
        let [bias, down, up] = [2, 3, 4].map(|index| dense(part(index)));
        let nodes = parts.map(|(_, node)| node);
        let (output, through, sizes) = linear_forward(
            &input,
            &weight,
            has_bias.then_some(&bias),
            has_factors.then_some((&down, &up)),
            scale,
            gelu,
        );
        match LinearBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let state = LinearState {
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
                };
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn add_low_rank(
        output: FloatTensor<Self>,
        input: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let [_, of_input, of_down, of_up] = [&output, &input, &down, &up].map(Tracked::is_tracked);
        let (output, output_node) = output.into_parts();
        let parts = [input, down, up].map(Tracked::into_parts);
        let [input, down, up] = parts.each_ref().map(|(t, _)| dense(t.clone()));
        let [input_node, down_node, up_node] = parts.map(|(_, node)| node);
        let (output, through, sizes) = add_low_rank_forward(output, &input, &down, &up, scale);
        let nodes = [output_node, input_node, down_node, up_node];
        match AddLowRankBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let state = LinearState {
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
                };
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn gelu(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let (input, node) = input.into_parts();
        let input = dense(input);
        match GeluBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let output = tensor(gelu::forward(numbers(&input)), input.shape());
                prep.finish(input, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::gelu(input)),
        }
    }

    fn dropout(input: FloatTensor<Self>, coins: Coins) -> FloatTensor<Self> {
        let (input, node) = input.into_parts();
        let output = Flex::dropout(input, coins);
        match DropoutBackward
            .prepare::<C>([node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(coins, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn layer_norm(
        input: FloatTensor<Self>,
        residual: Maybe<Self>,
        gamma: FloatTensor<Self>,
        beta: Maybe<Self>,
        epsilon: f32,
        coins: Option<Coins>,
    ) -> FloatTensor<Self> {
        let (residual, beta) = (residual.get(), beta.get());
        let (has_residual, has_beta) = (residual.is_some(), beta.is_some());
        let parents = [input, present(residual), gamma, present(beta)];
        let tracked = parents.iter().any(Tracked::is_tracked);
        let [(input, n0), (residual, n1), (gamma, n2), (beta, n3)] =
            parents.map(Tracked::into_parts);
        let (gamma, beta) = (dense(gamma), has_beta.then(|| dense(beta)));
        let (output, sum) = norm_forward(
            input,
            has_residual.then_some(residual),
            affine(&gamma, beta.as_ref(), epsilon),
            coins,
            tracked,
        );
        match NormBackward
            .prepare::<C>([n0, n1, n2, n3])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let state = NormState {
                    sum: sum.expect("kept, as some input is tracked"),
                    gamma,
                    epsilon,
                    coins,
                };
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        added: Maybe<Self>,
        settings: Attention,
    ) -> FloatTensor<Self> {
        let parts = [query, key, value].map(Tracked::into_parts);
        let [query, key, value] = parts.each_ref().map(|(t, _)| dense(t.clone()));
        let nodes = parts.map(|(_, node)| node);
        let added = added.get().map(|added| dense(added.into_primitive()));
        let output = settings.forward(Inputs {
            query: numbers(&query),
            key: numbers(&key),
            value: numbers(&value),
            mask: mask(added.as_ref()),
        });
        let output = tensor(output, query.shape());
        match AttentionBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let state = AttentionState {
                    query,
                    key,
                    value,
                    mask: added,
                    settings,
                };
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

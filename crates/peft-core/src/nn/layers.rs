//! The activation side: Burn's own layers, called so that adapters act on what flows through.

use burn::module::Param;
use burn::nn::conv::{Conv1d, Conv2d};
use burn::nn::{Dropout, Embedding, LayerNorm, Linear, PaddingConfig1d, PaddingConfig2d, RmsNorm};
use burn::tensor::module::embedding;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor};
use peft_ops::AttentionInputs;

use crate::adapter::base::BaseEmbedding as _;
use crate::adapter::forward_context::ForwardContext;
use crate::adapter::low_rank::dropout_rate;
use crate::attached::stack::Stack;
use crate::nn::base_layer::EmbeddingBelow;
use crate::nn::convolution::{adapted_conv, unmerged};
use crate::nn::linear::linear;
use crate::nn::mixture;
use crate::nn::seen::{Gelu, Normalised, SwiGlu};
use crate::nn::vector::Vector;

/// Forward passes of Burn's layers that never form an adapted weight.
///
/// `layer.adapted(x)` equals `layer.forward(x)` to rounding, whatever adapters the layer's weight
/// carries. A model opts in by changing the call, never a type, so its records stay Burn's. Input
/// dropout of adapters acts on this side only. Where [`ops`](crate::ops) has a fused operation for
/// what the layer does, it is used, adapters or not.
pub trait AdaptedForward<Input> {
    /// What the layer returns.
    type Output;

    /// The layer's output for `input`; shapes are those of the layer's own `forward`.
    fn adapted(&self, input: Input) -> Self::Output {
        self.adapted_in(input, &ForwardContext::new())
    }

    /// The same with what flows with the forward pass, for adapters that use it.
    fn adapted_in(&self, input: Input, context: &ForwardContext) -> Self::Output;
}

impl<const D: usize> AdaptedForward<Tensor<D>> for Linear {
    type Output = Tensor<D>;

    fn adapted_in(&self, input: Tensor<D>, context: &ForwardContext) -> Tensor<D> {
        linear(self, input, context)
    }
}

/// A linear layer of GELU, adapters and all: `layer.adapted(gelu(input))` without the activation ever
/// being whole in memory. Where nothing is trained but what adapters add, that is most of the memory
/// of a feed-forward block.
pub fn adapted_gelu<const D: usize>(
    layer: &Linear,
    input: Tensor<D>,
    context: &ForwardContext,
) -> Tensor<D> {
    linear(layer, Gelu(input), context)
}

/// A linear layer of SwiGLU, adapters and all: `layer.adapted(swiglu(gate, up))`, of which the backward pass
/// keeps `gate` and `up` only.
pub fn adapted_swiglu<const D: usize>(
    layer: &Linear,
    gate: Tensor<D>,
    up: Tensor<D>,
    context: &ForwardContext,
) -> Tensor<D> {
    linear(layer, SwiGlu(gate, up), context)
}

/// A linear layer of a normalised stream, adapters and all: `layer.adapted(norm.adapted(input))`, of which the
/// backward pass keeps `input` only.
pub fn adapted_norm<const D: usize>(
    layer: &Linear,
    norm: &RmsNorm,
    input: Tensor<D>,
    context: &ForwardContext,
) -> Tensor<D> {
    let gamma = Vector::of(&norm.gamma, context);
    match gamma.same() {
        Some(gamma) => linear(layer, Normalised(input, gamma, norm.epsilon), context),
        None => linear(layer, norm.adapted_in(input, context), context),
    }
}

/// A linear layer of attention, adapters and all: `layer.adapted(attention(…))`, of which the backward pass keeps
/// queries, keys and values only.
pub fn adapted_attention(
    layer: &Linear,
    inputs: AttentionInputs,
    context: &ForwardContext,
) -> Tensor<3> {
    linear(layer, inputs, context)
}

impl AdaptedForward<Tensor<2, Int>> for Embedding {
    type Output = Tensor<3>;

    fn adapted_in(&self, ids: Tensor<2, Int>, context: &ForwardContext) -> Tensor<3> {
        match unmerged(self.weight.reparameterization::<Stack>()) {
            None => self.forward(ids),
            Some(stack) => rows_of_table(self.weight.base(), stack, ids, context),
        }
    }
}

/// Rows of an embedding table for `ids` `[1, 1 or seq]` that are the same for all of the `batch` rows of `seq` tokens, as
/// positions are: `[1 or batch, 1 or seq, d]`. One row does unless the table's adapters differ between rows or tokens.
pub fn adapted_positions(
    table: &Embedding,
    ids: Tensor<2, Int>,
    [batch, seq]: [usize; 2],
    context: &ForwardContext,
) -> Tensor<3> {
    let stack = table.weight.reparameterization::<Stack>();
    if stack.is_some_and(Stack::varies) {
        return table.adapted_in(ids.expand([batch, seq]), context);
    }
    table.adapted_in(ids, context)
}

/// Rows of an embedding table, adapters and all.
fn rows_of_table(
    base: Tensor<2>,
    stack: &Stack,
    ids: Tensor<2, Int>,
    context: &ForwardContext,
) -> Tensor<3> {
    if let Some(kept) = stack.kept(&base) {
        return embedding(kept, ids);
    }
    if let Some(mixture) = stack.mixed() {
        return mixture::mix(stack, mixture, ids, context, |stack, ids, context| {
            rows_of_table(base.clone(), stack, ids, context)
        });
    }
    EmbeddingBelow {
        base,
        quantized: stack.quantized.as_ref(),
        context,
        below: &stack.active_weights(),
    }
    .forward(ids)
}

/// A linear layer of tokens `[1, tokens, d]` that are the same for all of the `batch` rows: `[1 or batch, tokens, out]`.
/// One row does unless the layer's adapters differ between rows.
pub fn adapted_tokens(
    layer: &Linear,
    tokens: Tensor<3>,
    batch: usize,
    context: &ForwardContext,
) -> Tensor<3> {
    let stack = layer.weight.reparameterization::<Stack>();
    let bias = layer.bias.as_ref();
    let of_bias = bias.and_then(|bias| bias.reparameterization::<Stack>());
    if [stack, of_bias].into_iter().flatten().any(Stack::varies) {
        let [_, count, width] = tokens.dims();
        return layer.adapted_in(tokens.expand([batch, count, width]), context);
    }
    layer.adapted_in(tokens, context)
}

impl AdaptedForward<Tensor<4>> for Conv2d {
    type Output = Tensor<4>;

    fn adapted_in(&self, input: Tensor<4>, context: &ForwardContext) -> Tensor<4> {
        let [_, _, height, width] = input.dims();
        let padding = padding(self, [height, width]);
        let options =
            ConvOptions::new_with_padding(self.stride, padding, self.dilation, self.groups);
        let output = adapted_conv(
            (&self.weight, self.bias.as_ref()),
            input.clone(),
            options,
            context,
        );
        output.unwrap_or_else(|| self.forward(input))
    }
}

// As one of two axes, of which the second has one element.
impl AdaptedForward<Tensor<3>> for Conv1d {
    type Output = Tensor<3>;

    fn adapted_in(&self, input: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        let padding = match &self.padding {
            PaddingConfig1d::Valid => (0, 0),
            PaddingConfig1d::Explicit(left, right) => (*left, *right),
            PaddingConfig1d::Same => same_padding(input.dims()[2], self.kernel_size, self.stride),
        };
        let options = ConvOptions::new_with_padding(
            [self.stride, 1],
            [padding, (0, 0)],
            [self.dilation, 1],
            self.groups,
        );
        let output = adapted_conv(
            (&self.weight, self.bias.as_ref()),
            input.clone().unsqueeze_dim(3),
            options,
            context,
        );
        match output {
            Some(output) => output.squeeze_dim(3),
            None => self.forward(input),
        }
    }
}

impl<const D: usize> AdaptedForward<Tensor<D>> for Dropout {
    type Output = Tensor<D>;

    fn adapted_in(&self, input: Tensor<D>, _context: &ForwardContext) -> Tensor<D> {
        peft_ops::dropout(input, dropout_rate(self))
    }
}

impl<const D: usize> AdaptedForward<Tensor<D>> for RmsNorm {
    type Output = Tensor<D>;

    fn adapted_in(&self, input: Tensor<D>, context: &ForwardContext) -> Tensor<D> {
        let gamma = Vector::of(&self.gamma, context);
        if let Some(gamma) = gamma.same() {
            return peft_ops::rms_norm(input, gamma, self.epsilon);
        }
        let ones = Tensor::ones_like(&self.gamma.base());
        gamma.times(peft_ops::rms_norm(input, ones, self.epsilon))
    }
}

impl<const D: usize> AdaptedForward<Tensor<D>> for LayerNorm {
    type Output = Tensor<D>;

    fn adapted_in(&self, input: Tensor<D>, context: &ForwardContext) -> Tensor<D> {
        let gamma = Vector::of(&self.gamma, context);
        let beta = self.beta.as_ref().map(|beta| Vector::of(beta, context));
        let varied = |vector: &Vector| vector.same().is_none();
        if !varied(&gamma) && !beta.as_ref().is_some_and(varied) {
            return self.forward(input);
        }
        let mut plain = self.clone();
        plain.gamma = Param::from_tensor(Tensor::ones_like(&self.gamma.base()));
        plain.beta = None;
        let output = gamma.times(plain.forward(input));
        match beta {
            Some(beta) => beta.add_to(output),
            None => output,
        }
    }
}

/// A layer normalisation of `dropout(input) + residual`, both `[batch, …, d]`, adapters and all, in one operation
/// where all rows have the same. `epsilon` is the layer's, which Burn does not tell.
pub fn adapted_layer_norm<const D: usize>(
    norm: &LayerNorm,
    epsilon: f64,
    (input, dropout): (Tensor<D>, f64),
    residual: Option<Tensor<D>>,
    context: &ForwardContext,
) -> Tensor<D> {
    let gamma = Vector::of(&norm.gamma, context);
    let beta = norm.beta.as_ref().map(|beta| Vector::of(beta, context));
    let same_beta = beta.as_ref().map(Vector::same);
    if let (Some(gamma), None | Some(Some(_))) = (gamma.same(), &same_beta) {
        return peft_ops::layer_norm(
            input,
            residual,
            gamma,
            same_beta.flatten(),
            epsilon,
            dropout,
        );
    }
    let input = peft_ops::dropout(input, dropout);
    let sum = match residual {
        Some(residual) => input + residual,
        None => input,
    };
    norm.adapted_in(sum, context)
}

/// Padding before and after, per axis, as Burn's own forward computes it.
fn padding(layer: &Conv2d, size: [usize; 2]) -> [(usize, usize); 2] {
    match &layer.padding {
        PaddingConfig2d::Valid => [(0, 0); 2],
        PaddingConfig2d::Explicit(top, left, bottom, right) => [(*top, *bottom), (*left, *right)],
        PaddingConfig2d::Same => {
            [0, 1].map(|axis| same_padding(size[axis], layer.kernel_size[axis], layer.stride[axis]))
        }
    }
}

/// Padding before and after that keeps a size; without the dilation, as Burn has it.
fn same_padding(size: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let steps = (size.div_ceil(stride).max(1) - 1) * stride;
    let total = (steps + kernel).saturating_sub(size);
    (total / 2, total - total / 2)
}

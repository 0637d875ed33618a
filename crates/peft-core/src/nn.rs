//! The activation side: Burn's own layers, called so that adapters act on what flows through.

use burn::module::Param;
use burn::nn::conv::Conv2d;
use burn::nn::{Dropout, Embedding, Linear, PaddingConfig2d};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor};
use peft_ops::LowRank;

use crate::chain::{InnerConv2d, InnerEmbedding, InnerLinear};
use crate::erased::ErasedWeight;
use crate::rows;
use crate::stack::Stack;

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
    fn adapted(&self, input: Input) -> Self::Output;
}

impl<const D: usize> AdaptedForward<Tensor<D>> for Linear {
    type Output = Tensor<D>;

    fn adapted(&self, input: Tensor<D>) -> Tensor<D> {
        linear(self, input, false)
    }
}

/// A linear layer of GELU, adapters and all: `layer.adapted(gelu(input))` without the activation ever
/// being whole in memory. Where nothing is trained but what adapters add, that is most of the memory
/// of a feed-forward block.
pub fn adapted_gelu<const D: usize>(layer: &Linear, input: Tensor<D>) -> Tensor<D> {
    linear(layer, input, true)
}

fn linear<const D: usize>(layer: &Linear, input: Tensor<D>, of_gelu: bool) -> Tensor<D> {
    let bias = layer.bias.as_ref().map(Param::val);
    let fused = if of_gelu {
        peft_ops::linear_of_gelu
    } else {
        peft_ops::linear
    };
    let Some(stack) = unmerged(layer.weight.reparameterization::<Stack>()) else {
        return fused(input, layer.weight.val(), bias, None);
    };
    if let Some(rows) = &stack.rows {
        let input = if of_gelu {
            peft_ops::gelu(input)
        } else {
            input
        };
        return rows::linear(layer, stack, rows, input);
    }
    let adapters = stack.active_weights();
    if let Some(low_rank) = low_rank(&adapters) {
        return fused(input, layer.weight.base(), bias, Some(low_rank));
    }
    let input = if of_gelu {
        peft_ops::gelu(input)
    } else {
        input
    };
    let mut shape = input.dims();
    let [d_in, d_out] = layer.weight.dims();
    let rows = input.reshape([-1, d_in as isize]);
    let inner = InnerLinear {
        base: layer.weight.base(),
        bias,
        below: &adapters,
    };
    shape[D - 1] = d_out;
    inner.forward(rows).reshape(shape)
}

/// What adapters add, where each of them is nothing but a low-rank addition: their factors side by
/// side, scales folded in.
fn low_rank(adapters: &[&dyn ErasedWeight]) -> Option<LowRank> {
    let mut factors: Vec<LowRank> = adapters
        .iter()
        .map(|adapter| adapter.low_rank())
        .collect::<Option<_>>()?;
    if factors.len() == 1 {
        return factors.pop();
    }
    let (down, up) = factors
        .into_iter()
        .map(|LowRank { down, up, scale }| (down, up * scale))
        .unzip();
    Some(LowRank {
        down: Tensor::cat(down, 1),
        up: Tensor::cat(up, 0),
        scale: 1.0,
    })
}

impl AdaptedForward<Tensor<2, Int>> for Embedding {
    type Output = Tensor<3>;

    fn adapted(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        match unmerged(self.weight.reparameterization::<Stack>()) {
            None => self.forward(ids),
            Some(stack) => InnerEmbedding {
                base: self.weight.base(),
                below: &stack.active_weights(),
            }
            .forward(ids),
        }
    }
}

impl AdaptedForward<Tensor<4>> for Conv2d {
    type Output = Tensor<4>;

    fn adapted(&self, input: Tensor<4>) -> Tensor<4> {
        let Some(stack) = unmerged(self.weight.reparameterization::<Stack>()) else {
            return self.forward(input);
        };
        let [_, _, height, width] = input.dims();
        let options = ConvOptions::new_with_padding(
            self.stride,
            padding(self, [height, width]),
            self.dilation,
            self.groups,
        );
        let adapters = stack.active_weights();
        let output = InnerConv2d {
            base: self.weight.base(),
            below: &adapters,
            options,
        }
        .forward(input);
        match &self.bias {
            Some(bias) => {
                let channels = bias.dims()[0];
                output + bias.val().reshape([1, channels, 1, 1])
            }
            None => output,
        }
    }
}

impl<const D: usize> AdaptedForward<Tensor<D>> for Dropout {
    type Output = Tensor<D>;

    fn adapted(&self, input: Tensor<D>) -> Tensor<D> {
        peft_ops::dropout(input, dropout_rate(self))
    }
}

/// The probability with which a dropout layer drops on autodiff devices: 0 where the layer is
/// switched off, as Burn does for frozen modules.
pub fn dropout_rate(dropout: &Dropout) -> f64 {
    if dropout.training.is_enabled() {
        dropout.prob
    } else {
        0.0
    }
}

/// The stack, if there is something to do at run time.
fn unmerged(stack: Option<&Stack>) -> Option<&Stack> {
    stack.filter(|stack| {
        stack.merged.is_none() && (stack.rows.is_some() || stack.active().next().is_some())
    })
}

/// Padding before and after, per axis, as Burn's own forward computes it.
fn padding(layer: &Conv2d, size: [usize; 2]) -> [(usize, usize); 2] {
    match &layer.padding {
        PaddingConfig2d::Valid => [(0, 0); 2],
        PaddingConfig2d::Explicit(top, left, bottom, right) => [(*top, *bottom), (*left, *right)],
        PaddingConfig2d::Same => [0, 1].map(|axis| {
            // Without the dilation, as Burn has it.
            let steps = (size[axis].div_ceil(layer.stride[axis]).max(1) - 1) * layer.stride[axis];
            let total = (steps + layer.kernel_size[axis]).saturating_sub(size[axis]);
            (total / 2, total - total / 2)
        }),
    }
}

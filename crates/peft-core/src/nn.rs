//! The activation side: Burn's own layers, called so that adapters act on what flows through.

use burn::nn::conv::Conv2d;
use burn::nn::{Dropout, Embedding, Linear, PaddingConfig2d};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor};

use crate::chain::{InnerConv2d, InnerEmbedding, InnerLinear};
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
        let bias = self.bias.as_ref().map(burn::module::Param::val);
        let Some(stack) = unmerged(self.weight.reparameterization::<Stack>()) else {
            return peft_ops::linear(input, self.weight.val(), bias, None);
        };
        let adapters = stack.active_weights();
        let mut shape = input.dims();
        let [d_in, d_out] = self.weight.dims();
        let rows = input.reshape([-1, d_in as isize]);
        let output = InnerLinear {
            base: self.weight.base(),
            bias,
            below: &adapters,
        }
        .forward(rows);
        shape[D - 1] = d_out;
        output.reshape(shape)
    }
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
    stack.filter(|stack| stack.merged.is_none() && stack.active().next().is_some())
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

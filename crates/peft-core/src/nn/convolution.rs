//! The forward pass of a convolution with adapters on its kernel and bias.

use burn::module::Param;
use burn::tensor::Tensor;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;

use crate::adapter::base::BaseConv2d as _;
use crate::adapter::forward_context::ForwardContext;
use crate::attached::stack::Stack;
use crate::nn::base_layer::Conv2dBelow;
use crate::nn::mixture;
use crate::nn::vector::Vector;

/// The output `[batch, out, h, w]` of a convolution for `input` `[batch, in, h, w]`, adapters and all; none where the layer's own
/// forward pass gives it. A kernel with one axis is taken for one with a second axis of one element.
pub(crate) fn adapted_conv<const D: usize>(
    (weight, bias): (&Param<Tensor<D>>, Option<&Param<Tensor<1>>>),
    input: Tensor<4>,
    options: ConvOptions<2>,
    context: &ForwardContext,
) -> Option<Tensor<4>> {
    let bias = bias.map(|bias| Vector::of(bias, context));
    let output = match unmerged(weight.reparameterization::<Stack>()) {
        None => {
            if let Some(Vector::Same(_)) | None = &bias {
                return None;
            }
            convolve(weight, &Stack::default(), input, &options, context)
        }
        Some(stack) => convolve(weight, stack, input, &options, context),
    };
    Some(match bias {
        None => output,
        // Channels last, as vectors have their features.
        Some(bias) => bias
            .add_to(output.permute([0, 2, 3, 1]))
            .permute([0, 3, 1, 2]),
    })
}

/// The convolution without its bias, adapters and all.
fn convolve<const D: usize>(
    weight: &Param<Tensor<D>>,
    stack: &Stack,
    input: Tensor<4>,
    options: &ConvOptions<2>,
    context: &ForwardContext,
) -> Tensor<4> {
    if let Some(kept) = stack.kept(&weight.base()) {
        return conv2d(input, kernel(kept), None, options.clone());
    }
    if let Some(mixture) = stack.mixed() {
        return mixture::mix(stack, mixture, input, context, |stack, input, context| {
            convolve(weight, stack, input, options, context)
        });
    }
    Conv2dBelow {
        base: kernel(weight.base()),
        context,
        below: &stack.active_weights(),
        options: options.clone(),
    }
    .forward(input)
}

/// `[out, in / groups, h, w]`, with a second axis of one element where there is none.
fn kernel<const D: usize>(weight: Tensor<D>) -> Tensor<4> {
    let shape = weight.dims();
    weight.reshape([
        shape[0],
        shape[1],
        shape[2],
        shape.get(3).copied().unwrap_or(1),
    ])
}

/// The stack, if there is something to do at run time.
pub(crate) fn unmerged(stack: Option<&Stack>) -> Option<&Stack> {
    stack.filter(|stack| {
        let used = stack.quantized.is_some() || stack.used().next().is_some();
        stack.merged.is_none() && used
    })
}

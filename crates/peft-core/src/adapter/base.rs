//! A layer as one of its adapters finds it: callable and readable.
//!
//! What these traits stand for lies below the adapter: the base layer, quantized or not, with the adapters that were
//! attached before. Hugging Face PEFT calls it `base_layer`.

use std::sync::LazyLock;

use burn::module::Param;
use burn::nn::{Embedding, Linear};
use burn::tensor::module::embedding;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor};
use peft_ops::LowRank;

use crate::adapter::forward_context::ForwardContext;

/// The context of a layer that is called outside of a forward pass.
static NOTHING: LazyLock<ForwardContext> = LazyLock::new(ForwardContext::new);

/// A linear layer with its bias, below one adapter.
///
/// Burn's `Linear` is one, so that a method's [`linear`](crate::method::WeightAdapter::linear) can be called in a test:
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::{Device, Tensor};
/// use peft_core::method::BaseLinear;
///
/// let layer = LinearConfig::new(3, 2).init(&Device::default());
/// let base: &dyn BaseLinear = &layer;
/// let output = base.forward(Tensor::ones([4, 3], &Device::default()));
/// assert_eq!(output.dims(), [4, 2]);
/// ```
pub trait BaseLinear {
    /// The effective weight, `[in, out]`. Costs a dense matrix where adapters lie below.
    fn weight(&self) -> Tensor<2>;

    /// The model's own weight, `[in, out]`, without the adapters that lie below. Costs a dense matrix where the base is
    /// quantized. Default: [`weight`](Self::weight).
    fn own_weight(&self) -> Tensor<2> {
        self.weight()
    }

    /// The bias, `[out]`.
    fn bias(&self) -> Option<Tensor<1>>;

    /// `x W + b` for `input` of shape `[tokens, in]`: returns `[tokens, out]`.
    fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        peft_ops::linear(input, self.weight(), self.bias(), None)
    }

    /// `x W`, without the bias: for methods that change the product and not the bias.
    fn product(&self, input: Tensor<2>) -> Tensor<2> {
        peft_ops::linear(input, self.weight(), None, None)
    }

    /// `x W + b + s·(x A) B`: one operation where no other adapter lies below.
    fn forward_with(&self, input: Tensor<2>, low_rank: LowRank) -> Tensor<2> {
        peft_ops::linear(input, self.weight(), self.bias(), Some(low_rank))
    }

    /// `output` `[tokens, out]` with the bias added: what ends the `linear` of a method that changes
    /// the [`product`](Self::product).
    fn with_bias(&self, output: Tensor<2>) -> Tensor<2> {
        match self.bias() {
            Some(bias) => output + bias.unsqueeze(),
            None => output,
        }
    }

    /// Norms of the columns of the base, `[out]`, if that is all that is below; no gradient goes through them. They
    /// are computed once for all forward passes between two changes of the model, and once at all where the base is
    /// quantized. Default: `None`, where nothing is kept.
    fn base_norms(&self) -> Option<Tensor<1>> {
        None
    }

    /// What flows with the forward pass. Default: nothing.
    fn context(&self) -> &ForwardContext {
        &NOTHING
    }

    /// How many texts the tokens are of, each of as many: the first axis of what the layer was called with. Default: 1.
    fn batch(&self) -> usize {
        1
    }
}

impl BaseLinear for Linear {
    fn weight(&self) -> Tensor<2> {
        self.weight.val()
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Param::val)
    }
}

/// An embedding table, below one adapter. Burn's `Embedding` is one.
pub trait BaseEmbedding {
    /// The effective table, `[vocabulary, d]`.
    fn weight(&self) -> Tensor<2>;

    /// Rows for `ids` of shape `[batch, seq]`: returns `[batch, seq, d]`.
    fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        embedding(self.weight(), ids)
    }

    /// What flows with the forward pass. Default: nothing.
    fn context(&self) -> &ForwardContext {
        &NOTHING
    }
}

impl BaseEmbedding for Embedding {
    fn weight(&self) -> Tensor<2> {
        self.weight.val()
    }
}

/// A convolution without its bias, below one adapter; one of one axis as one of two, the second of one element.
pub trait BaseConv2d {
    /// The effective kernel, `[out, in / groups, h, w]`.
    fn weight(&self) -> Tensor<4>;

    /// Stride, padding, dilation and groups of the layer.
    fn options(&self) -> ConvOptions<2>;

    /// The convolution of `input` `[batch, in, h, w]`.
    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        burn::tensor::module::conv2d(input, self.weight(), None, self.options())
    }

    /// What flows with the forward pass. Default: nothing.
    fn context(&self) -> &ForwardContext {
        &NOTHING
    }
}

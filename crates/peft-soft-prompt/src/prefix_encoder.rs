//! The network that computes prefixes while they are trained.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{Activation, CheckpointKey, Init, Shared};

/// Li & Liang 2021, section 4.3: a two-layer network in place of the keys and values, `σ(E W + b) W' + b'`. All
/// layers share its first part.
#[derive(Module, Debug)]
pub struct PrefixEncoder {
    /// E, `[virtual_tokens, d]`: d is the keys' width in Hugging Face PEFT, and the hidden states' in AdapterHub.
    pub embeddings: Shared<2>,
    /// W, `[d, h]`.
    pub inner: Shared<2>,
    /// b, `[h]`.
    pub inner_bias: Shared<1>,
    /// This layer's columns of W', `[h, 2 · kv]`.
    pub outer: Param<Tensor<2>>,
    /// This layer's part of b', `[2 · kv]`.
    pub outer_bias: Param<Tensor<1>>,
    /// σ. Hugging Face PEFT's is tanh.
    #[module(skip)]
    pub activation: Activation,
}

/// What the network of a model's prefixes looks like.
pub(crate) struct EncoderShape {
    pub(crate) virtual_tokens: usize,
    /// Of E's rows.
    pub(crate) width: usize,
    /// h.
    pub(crate) hidden: usize,
    /// Of keys.
    pub(crate) kv: usize,
    pub(crate) activation: Activation,
    /// Whether W' and b' begin at zero.
    pub(crate) zero: bool,
}

impl PrefixEncoder {
    /// The encoders of `layers` layers, initialised as torch initialises embeddings and linear layers.
    pub(crate) fn of_layers(
        shape: &EncoderShape,
        layers: usize,
        init: &mut Init,
        like: (&Device, DType),
    ) -> Vec<Self> {
        let &EncoderShape {
            virtual_tokens,
            width,
            hidden,
            kv,
            activation,
            zero,
        } = shape;
        let embeddings = init.normal([virtual_tokens, width], 1.0, like);
        let inner = init.kaiming_uniform([width, hidden], width, like);
        let inner_bias = init.kaiming_uniform([hidden], width, like);
        Shared::new(embeddings, layers)
            .zip(Shared::new(inner, layers))
            .zip(Shared::new(inner_bias, layers))
            .map(|((embeddings, inner), inner_bias)| {
                let (outer, outer_bias) = if zero {
                    (
                        init.zeros([hidden, 2 * kv], like),
                        init.zeros([2 * kv], like),
                    )
                } else {
                    (
                        init.kaiming_uniform([hidden, 2 * kv], hidden, like),
                        init.kaiming_uniform([2 * kv], hidden, like),
                    )
                };
                Self {
                    embeddings,
                    inner,
                    inner_bias,
                    outer,
                    outer_bias,
                    activation,
                }
            })
            .collect()
    }

    /// Keys and values, `[virtual_tokens, 2 · kv]`, of parameters as `seen` shows them.
    pub(crate) fn forward(&self, seen: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        let row = |bias: Tensor<1>| seen(bias.unsqueeze());
        let inside = seen(self.embeddings.val()).matmul(seen(self.inner.val()));
        let inside = self.activation.apply(inside + row(self.inner_bias.val()));
        inside.matmul(seen(self.outer.val())) + row(self.outer_bias.val())
    }

    /// The tensors, as layer `layer` of `layers`. `field` leads to the encoder; `key` gives the file's key for one of a
    /// state dict's names below the encoder.
    pub(crate) fn tensors(
        &self,
        field: &str,
        [layer, layers]: [usize; 2],
        key: impl Fn(&str, String) -> CheckpointKey,
        [embedding, network]: [&str; 2],
    ) -> Vec<CheckpointKey> {
        // Not `dims`, which would draw the values: a file may declare any number of them.
        let width = self.outer.lazy_shape()[1];
        let at = |name: &str, stored: String| key(&format!("{field}.{name}"), stored);
        let own =
            |name: &str, stored: String| at(name, stored).columns(layer * width, layers * width);
        vec![
            at("embeddings", format!("{embedding}.weight")),
            at("inner", format!("{network}.0.weight")).transposed(),
            at("inner_bias", format!("{network}.0.bias")),
            own("outer", format!("{network}.2.weight")).transposed(),
            own("outer_bias", format!("{network}.2.bias")),
        ]
    }
}

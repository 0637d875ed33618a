//! A layer seen from one of its adapters: everything below it, callable and readable.

use std::sync::{Arc, OnceLock};

use burn::tensor::module::{conv2d, embedding};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor};
use peft_ops::{LowRank, Weight};

use crate::adapter::erased::{AnyTensor, ErasedWeight};
use crate::adapter::forward_context::ForwardContext;
use crate::adapter::quantized_base::QuantizedBase;

/// The base below, as the layer holds it, with the adapters `below` folded in.
fn composed<const D: usize>(base: &Tensor<D>, below: &[&dyn ErasedWeight]) -> Tensor<D> {
    below
        .iter()
        .fold(AnyTensor::new(base.clone()), |weight, adapter| {
            adapter.compose(weight)
        })
        .get()
}

/// The base as a dense tensor.
fn dequantized(base: &Tensor<2>, quantized: Option<&QuantizedBase>) -> Tensor<2> {
    match quantized {
        Some(quantized) => quantized.dense(base),
        None => base.clone(),
    }
}

/// Norms of a base's columns, computed when they are first asked for. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct BaseNorms(Arc<OnceLock<Tensor<1>>>);

impl BaseNorms {
    fn get(&self, base: impl FnOnce() -> Tensor<2>, like: &Tensor<2>) -> Tensor<1> {
        let norms = self
            .0
            .get_or_init(|| peft_ops::column_norms(base()).without_autodiff())
            .clone()
            .cast(like.dtype());
        if like.is_autodiff() {
            Tensor::from_inner(norms)
        } else {
            norms
        }
    }
}

/// A linear layer with its bias, below one adapter.
pub struct BaseLinear<'a> {
    /// The parameter's own tensor.
    pub(crate) base: Tensor<2>,
    /// What it stands in for, if the base is quantized.
    pub(crate) quantized: Option<&'a QuantizedBase>,
    pub(crate) bias: Option<Tensor<1>>,
    pub(crate) norms: &'a BaseNorms,
    /// What flows with the forward pass.
    pub(crate) context: &'a ForwardContext,
    pub(crate) below: &'a [&'a dyn ErasedWeight],
}

impl BaseLinear<'_> {
    /// What flows with the forward pass.
    pub fn context(&self) -> &ForwardContext {
        self.context
    }

    /// `x W + b` for `input` of shape `[tokens, in]`: returns `[tokens, out]`.
    pub fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        self.run(input, self.bias.clone(), None)
    }

    /// `x W`, without the bias: for methods that change the product and not the bias.
    pub fn product(&self, input: Tensor<2>) -> Tensor<2> {
        self.run(input, None, None)
    }

    /// `x W + b + s·(x A) B`: one operation where no other adapter lies below.
    pub fn forward_with(&self, input: Tensor<2>, low_rank: LowRank) -> Tensor<2> {
        self.run(input, self.bias.clone(), Some(low_rank))
    }

    fn run(
        &self,
        input: Tensor<2>,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<2> {
        let Some((adapter, below)) = self.below.split_last() else {
            let weight = match self.quantized {
                Some(quantized) => Weight::Quantized(quantized.rows.clone()),
                None => Weight::Dense(self.base.clone()),
            };
            return peft_ops::linear(input, weight, bias, low_rank);
        };
        let inner = BaseLinear {
            base: self.base.clone(),
            context: self.context,
            quantized: self.quantized,
            bias,
            norms: self.norms,
            below,
        };
        let output = adapter.linear(input.clone(), &inner);
        match low_rank {
            Some(low_rank) => peft_ops::add_low_rank(output, input, low_rank),
            None => output,
        }
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<Tensor<1>> {
        self.bias.clone()
    }

    /// `output` `[tokens, out]` with the bias added: what ends the `linear` of a method that changes
    /// the [`product`](Self::product).
    pub fn with_bias(&self, output: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => output + bias.clone().unsqueeze(),
            None => output,
        }
    }

    /// The effective weight below, `[in, out]`. Costs a dense matrix where adapters lie below.
    pub fn weight(&self) -> Tensor<2> {
        composed(&dequantized(&self.base, self.quantized), self.below)
    }

    /// Norms of the columns of the base, `[out]`, if that is all that is below; no gradient goes through them. They
    /// are computed once for all forward passes between two changes of the model, and once at all where the base is
    /// quantized.
    pub fn base_norms(&self) -> Option<Tensor<1>> {
        let base = || dequantized(&self.base, self.quantized);
        let alone = self.below.is_empty();
        alone.then(|| self.norms.get(base, &self.base))
    }
}

/// An embedding table, below one adapter.
pub struct BaseEmbedding<'a> {
    /// The parameter's own tensor.
    pub(crate) base: Tensor<2>,
    /// What it stands in for, if the base is quantized.
    pub(crate) quantized: Option<&'a QuantizedBase>,
    /// What flows with the forward pass.
    pub(crate) context: &'a ForwardContext,
    pub(crate) below: &'a [&'a dyn ErasedWeight],
}

impl BaseEmbedding<'_> {
    /// What flows with the forward pass.
    pub fn context(&self) -> &ForwardContext {
        self.context
    }

    /// Rows for `ids` of shape `[batch, seq]`: returns `[batch, seq, d]`.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        match self.below.split_last() {
            None => match self.quantized {
                Some(quantized) => quantized.embedding(ids, &self.base),
                None => embedding(self.base.clone(), ids),
            },
            Some((adapter, below)) => adapter.embedding(
                ids,
                &BaseEmbedding {
                    base: self.base.clone(),
                    context: self.context,
                    quantized: self.quantized,
                    below,
                },
            ),
        }
    }

    /// The effective table below, `[vocabulary, d]`.
    pub fn weight(&self) -> Tensor<2> {
        composed(&dequantized(&self.base, self.quantized), self.below)
    }
}

/// A 2-D convolution without its bias, below one adapter.
pub struct BaseConv2d<'a> {
    pub(crate) base: Tensor<4>,
    /// What flows with the forward pass.
    pub(crate) context: &'a ForwardContext,
    pub(crate) below: &'a [&'a dyn ErasedWeight],
    pub(crate) options: ConvOptions<2>,
}

impl BaseConv2d<'_> {
    /// What flows with the forward pass.
    pub fn context(&self) -> &ForwardContext {
        self.context
    }

    /// The convolution of `input` `[batch, in, h, w]`.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        match self.below.split_last() {
            None => conv2d(input, self.base.clone(), None, self.options.clone()),
            Some((adapter, below)) => adapter.conv2d(
                input,
                &BaseConv2d {
                    base: self.base.clone(),
                    context: self.context,
                    below,
                    options: self.options.clone(),
                },
            ),
        }
    }

    /// The effective kernel below, `[out, in / groups, h, w]`.
    pub fn weight(&self) -> Tensor<4> {
        composed(&self.base, self.below)
    }

    /// Stride, padding, dilation and groups of the layer.
    pub fn options(&self) -> ConvOptions<2> {
        self.options.clone()
    }
}

//! A layer seen from one of its adapters: the base and the adapters below.

use burn::tensor::module::{conv2d, embedding};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor};
use peft_ops::{LowRank, Weight};

use crate::adapter::any_tensor::AnyTensor;
use crate::adapter::base::{BaseConv2d, BaseEmbedding, BaseLinear};
use crate::adapter::erased::ErasedWeight;
use crate::adapter::forward_context::ForwardContext;
use crate::adapter::quantized_base::QuantizedBase;
use crate::attached::base_norms::BaseNorms;

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

/// A linear layer with its bias, and the adapters `below` on its weight.
pub(crate) struct LinearBelow<'a> {
    /// The parameter's own tensor.
    pub(crate) base: Tensor<2>,
    /// What it stands in for, if the base is quantized.
    pub(crate) quantized: Option<&'a QuantizedBase>,
    pub(crate) bias: Option<Tensor<1>>,
    pub(crate) norms: &'a BaseNorms,
    /// What flows with the forward pass.
    pub(crate) context: &'a ForwardContext,
    /// How many texts the input's rows are of.
    pub(crate) batch: usize,
    pub(crate) below: &'a [&'a dyn ErasedWeight],
}

impl LinearBelow<'_> {
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
        let base = LinearBelow {
            base: self.base.clone(),
            context: self.context,
            batch: self.batch,
            quantized: self.quantized,
            bias,
            norms: self.norms,
            below,
        };
        let output = adapter.linear(input.clone(), &base);
        match low_rank {
            Some(low_rank) => peft_ops::add_low_rank(output, input, low_rank),
            None => output,
        }
    }
}

impl BaseLinear for LinearBelow<'_> {
    fn batch(&self) -> usize {
        self.batch
    }

    fn context(&self) -> &ForwardContext {
        self.context
    }

    fn weight(&self) -> Tensor<2> {
        composed(&dequantized(&self.base, self.quantized), self.below)
    }

    fn own_weight(&self) -> Tensor<2> {
        dequantized(&self.base, self.quantized)
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.clone()
    }

    fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        self.run(input, self.bias.clone(), None)
    }

    fn product(&self, input: Tensor<2>) -> Tensor<2> {
        self.run(input, None, None)
    }

    fn forward_with(&self, input: Tensor<2>, low_rank: LowRank) -> Tensor<2> {
        self.run(input, self.bias.clone(), Some(low_rank))
    }

    fn base_norms(&self) -> Option<Tensor<1>> {
        let base = || dequantized(&self.base, self.quantized);
        let alone = self.below.is_empty();
        alone.then(|| self.norms.get(base, &self.base))
    }
}

/// An embedding table, and the adapters `below` on it.
pub(crate) struct EmbeddingBelow<'a> {
    /// The parameter's own tensor.
    pub(crate) base: Tensor<2>,
    /// What it stands in for, if the base is quantized.
    pub(crate) quantized: Option<&'a QuantizedBase>,
    /// What flows with the forward pass.
    pub(crate) context: &'a ForwardContext,
    pub(crate) below: &'a [&'a dyn ErasedWeight],
}

impl BaseEmbedding for EmbeddingBelow<'_> {
    fn context(&self) -> &ForwardContext {
        self.context
    }

    fn weight(&self) -> Tensor<2> {
        composed(&dequantized(&self.base, self.quantized), self.below)
    }

    fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        match self.below.split_last() {
            None => match self.quantized {
                Some(quantized) => quantized.embedding(ids, &self.base),
                None => embedding(self.base.clone(), ids),
            },
            Some((adapter, below)) => adapter.embedding(
                ids,
                &EmbeddingBelow {
                    base: self.base.clone(),
                    context: self.context,
                    quantized: self.quantized,
                    below,
                },
            ),
        }
    }
}

/// A 2-D convolution without its bias, and the adapters `below` on its kernel.
pub(crate) struct Conv2dBelow<'a> {
    pub(crate) base: Tensor<4>,
    /// What flows with the forward pass.
    pub(crate) context: &'a ForwardContext,
    pub(crate) below: &'a [&'a dyn ErasedWeight],
    pub(crate) options: ConvOptions<2>,
}

impl BaseConv2d for Conv2dBelow<'_> {
    fn context(&self) -> &ForwardContext {
        self.context
    }

    fn weight(&self) -> Tensor<4> {
        composed(&self.base, self.below)
    }

    fn options(&self) -> ConvOptions<2> {
        self.options.clone()
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        match self.below.split_last() {
            None => conv2d(input, self.base.clone(), None, self.options.clone()),
            Some((adapter, below)) => adapter.conv2d(
                input,
                &Conv2dBelow {
                    base: self.base.clone(),
                    context: self.context,
                    below,
                    options: self.options.clone(),
                },
            ),
        }
    }
}

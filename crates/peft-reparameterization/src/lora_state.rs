//! What LoRA adds to a linear layer, an embedding table and a convolution.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::module::{conv2d, embedding};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor};
use peft_core::ops::{LowRank, add_low_rank};
use peft_core::{
    AdaptedForward, Adapter, InnerConv2d, InnerEmbedding, InnerLinear, TensorSpec, WeightAdapter,
    dropout_rate,
};

/// Hu et al. 2021, section 4.1: `y = xW + s·(drop(x) A) B`.
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// Down-projection A, `[in, r]`.
    pub lora_a: Param<Tensor<2>>,
    /// Up-projection B, `[r, out]`.
    pub lora_b: Param<Tensor<2>>,
    /// s: alpha / r, or alpha / sqrt(r).
    pub scale: f64,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
}

impl LoraLinear {
    /// A, B and s.
    fn factors(&self) -> LowRank {
        LowRank {
            down: self.lora_a.val(),
            up: self.lora_b.val(),
            scale: self.scale,
        }
    }

    /// The change of the weight, `[in, out]`.
    pub fn delta(&self) -> Tensor<2> {
        (self.lora_a.val() * self.scale).matmul(self.lora_b.val())
    }
}

impl Adapter for LoraLinear {
    const METHOD: &'static str = "lora";

    fn tensors(&self) -> Vec<TensorSpec> {
        vec![
            TensorSpec::layer("lora_a", "lora_A.weight").transposed(),
            TensorSpec::layer("lora_b", "lora_B.weight").transposed(),
        ]
    }
}

impl WeightAdapter for LoraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + self.delta().reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        let factors = self.factors();
        let dropping = dropout_rate(&self.dropout) > 0.0 && factors.down.is_autodiff();
        (!dropping).then_some(factors)
    }

    fn linear(&self, input: Tensor<2>, inner: &InnerLinear<'_>) -> Tensor<2> {
        let dropped = self.dropout.adapted(input.clone());
        add_low_rank(inner.forward(input), dropped, self.factors())
    }
}

/// LoRA on an embedding table: row i changes by `s·A[i] B`. No dropout, as upstream.
#[derive(Module, Debug)]
pub struct LoraEmbedding {
    /// A, `[vocabulary, r]`.
    pub lora_a: Param<Tensor<2>>,
    /// B, `[r, d]`.
    pub lora_b: Param<Tensor<2>>,
    /// s.
    pub scale: f64,
}

impl Adapter for LoraEmbedding {
    const METHOD: &'static str = "lora";

    fn tensors(&self) -> Vec<TensorSpec> {
        vec![
            TensorSpec::layer("lora_a", "lora_embedding_A").transposed(),
            TensorSpec::layer("lora_b", "lora_embedding_B").transposed(),
        ]
    }
}

impl WeightAdapter for LoraEmbedding {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let delta = self.lora_a.val().matmul(self.lora_b.val() * self.scale);
        let shape = weight.shape();
        weight + delta.reshape(shape)
    }

    fn embedding(&self, ids: Tensor<2, Int>, inner: &InnerEmbedding<'_>) -> Tensor<3> {
        let down = embedding(self.lora_a.val(), ids.clone());
        inner.forward(ids) + down.matmul((self.lora_b.val() * self.scale).unsqueeze())
    }
}

/// LoRA on a 2-D convolution: a convolution to r channels, then one of 1×1.
///
/// With groups, A is of one group's channels and the change is composed into the kernel; dropout is
/// left out there. Upstream gives such layers factors of other shapes: its checkpoints of grouped
/// convolutions are refused by shape.
#[derive(Module, Debug)]
pub struct LoraConv2d {
    /// A, `[r, in / groups, h, w]`.
    pub lora_a: Param<Tensor<4>>,
    /// B, `[out, r, 1, 1]`.
    pub lora_b: Param<Tensor<4>>,
    /// s.
    pub scale: f64,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
}

impl Adapter for LoraConv2d {
    const METHOD: &'static str = "lora";

    fn tensors(&self) -> Vec<TensorSpec> {
        vec![
            TensorSpec::layer("lora_a", "lora_A.weight"),
            TensorSpec::layer("lora_b", "lora_B.weight"),
        ]
    }
}

impl WeightAdapter for LoraConv2d {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let [out, rank, _, _] = self.lora_b.dims();
        let down = self.lora_a.val().reshape([rank as isize, -1]);
        let delta = (self.lora_b.val().reshape([out, rank]) * self.scale).matmul(down);
        let shape = weight.shape();
        weight + delta.reshape(shape)
    }

    fn conv2d(&self, input: Tensor<4>, inner: &InnerConv2d<'_>) -> Tensor<4> {
        let options = inner.options();
        if options.groups != 1 {
            // A's channels are those of one group, so it cannot run on all of the input.
            return conv2d(input, self.compose(inner.weight()), None, options);
        }
        let down = conv2d(
            self.dropout.adapted(input.clone()),
            self.lora_a.val(),
            None,
            options,
        );
        let up = ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
        inner.forward(input) + conv2d(down * self.scale, self.lora_b.val(), None, up)
    }
}

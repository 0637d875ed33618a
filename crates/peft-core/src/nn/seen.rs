//! What a linear layer sees: a tensor, or an operation that the layer's own is fused with.

use burn::tensor::{DType, Tensor};
use peft_ops::{AttentionInputs, LowRank, Weight};

/// What a layer sees: the result of an operation that may be one with the layer's own.
pub(crate) trait Seen<const D: usize> {
    /// The layer, in one operation.
    fn fused(self, weight: Weight, bias: Option<Tensor<1>>, low_rank: Option<LowRank>)
    -> Tensor<D>;

    /// What the layer sees, whole.
    fn whole(self) -> Tensor<D>;

    /// The number format of what the layer sees.
    fn dtype(&self) -> DType;
}

impl<const D: usize> Seen<D> for Tensor<D> {
    fn fused(
        self,
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<D> {
        peft_ops::linear(self, weight, bias, low_rank)
    }

    fn whole(self) -> Tensor<D> {
        self
    }

    fn dtype(&self) -> DType {
        Tensor::dtype(self)
    }
}

pub(crate) struct Gelu<const D: usize>(pub(crate) Tensor<D>);

impl<const D: usize> Seen<D> for Gelu<D> {
    fn fused(
        self,
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<D> {
        peft_ops::linear_of_gelu(self.0, weight, bias, low_rank)
    }

    fn whole(self) -> Tensor<D> {
        peft_ops::gelu(self.0)
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }
}

pub(crate) struct SwiGlu<const D: usize>(pub(crate) Tensor<D>, pub(crate) Tensor<D>);

impl<const D: usize> Seen<D> for SwiGlu<D> {
    fn fused(
        self,
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<D> {
        peft_ops::linear_of_swiglu(self.0, self.1, weight, bias, low_rank)
    }

    fn whole(self) -> Tensor<D> {
        peft_ops::swiglu(self.0, self.1)
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }
}

/// A stream, the factors of its normalisation, and what is added to its mean square.
pub(crate) struct Normalised<const D: usize>(
    pub(crate) Tensor<D>,
    pub(crate) Tensor<1>,
    pub(crate) f64,
);

impl<const D: usize> Seen<D> for Normalised<D> {
    fn fused(
        self,
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<D> {
        peft_ops::linear_of_rms_norm(self.0, self.1, self.2, weight, bias, low_rank)
    }

    fn whole(self) -> Tensor<D> {
        peft_ops::rms_norm(self.0, self.1, self.2)
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }
}

impl Seen<3> for AttentionInputs {
    fn fused(
        self,
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<3> {
        peft_ops::linear_of_attention(self, weight, bias, low_rank)
    }

    fn whole(self) -> Tensor<3> {
        self.attention()
    }

    fn dtype(&self) -> DType {
        self.query.dtype()
    }
}

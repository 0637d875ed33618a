//! The fused operations as operations of Burn's CPU backend: `forward` computes them on its tensors,
//! `backward` their gradients, and `autodiff` records which inputs and numbers those need.

mod autodiff;
mod backward;
mod composing;
mod forward;
mod kept;
mod rounded;
mod tensors;
mod weight;

use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, ExtensionType, backend_extension};

use crate::cpu::attention::Attention;
use crate::cpu::dropout::Coins;
use crate::cpu::sparse::Pattern;
use crate::options::MixedPrecision;
use crate::quantized::QuantizedWeight;
use crate::segments::Segments;

pub(crate) use composing::Composing;
pub(crate) use rounded::forget as forget_rounded;

/// Settings of a linear layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// s.
    pub(crate) scale: f32,
    /// Whether the layer sees GELU of its input.
    pub(crate) gelu: bool,
    /// Of the normalisation, if there is one.
    pub(crate) epsilon: f32,
    /// What A does not see.
    pub(crate) coins: Option<Coins>,
    /// The weight, if it is quantized.
    pub(crate) quantized: Option<QuantizedWeight>,
    /// Of products with the weight.
    pub(crate) precision: MixedPrecision,
}

/// A tensor that may be absent.
#[derive(ExtensionType)]
pub(crate) enum Maybe<B: Backend> {
    Given(FloatTensor<B>),
    Absent,
}

impl<B: Backend> Maybe<B> {
    fn from_option(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::Absent, Self::Given)
    }

    fn get(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Given(tensor) => Some(tensor),
            Self::Absent => None,
        }
    }
}

impl From<Option<FloatTensor<Dispatch>>> for Maybe<Dispatch> {
    fn from(tensor: Option<FloatTensor<Dispatch>>) -> Self {
        Self::from_option(tensor)
    }
}

/// Tensors are `f32` and on Burn's CPU backend; the caller has checked that.
#[backend_extension(Autodiff, Flex)]
pub(crate) trait Fused: Backend {
    /// `x W + b + s·(drop(x) A) B`, where x is the input, GELU of it, silu of it times what it gates, or it
    /// normalised by its root mean square and scaled by `gamma`; `down` and `up` are there both or neither, and
    /// `weight` is there unless it is quantized.
    fn linear(
        input: FloatTensor<Self>,
        #[extension_type] gated: Maybe<Self>,
        #[extension_type] gamma: Maybe<Self>,
        #[extension_type] weight: Maybe<Self>,
        #[extension_type] bias: Maybe<Self>,
        #[extension_type] down: Maybe<Self>,
        #[extension_type] up: Maybe<Self>,
        layer: Layer,
    ) -> FloatTensor<Self>;

    /// `y + s·(drop(x) A) B`, in the memory of `y` where nothing else holds it.
    fn add_low_rank(
        output: FloatTensor<Self>,
        input: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
        scale: f32,
        coins: Option<Coins>,
    ) -> FloatTensor<Self>;

    /// `y + x S`, in the memory of `y` where nothing else holds it.
    fn add_sparse(
        output: FloatTensor<Self>,
        input: FloatTensor<Self>,
        values: FloatTensor<Self>,
        pattern: Arc<Pattern>,
    ) -> FloatTensor<Self>;

    /// `x·Φ(x)`.
    fn gelu(input: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Every element multiplied by its factor.
    fn dropout(input: FloatTensor<Self>, coins: Coins) -> FloatTensor<Self>;

    /// `norm(drop(x) + residual)·γ + β` over the last dimension.
    fn layer_norm(
        input: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        gamma: FloatTensor<Self>,
        #[extension_type] beta: Maybe<Self>,
        epsilon: f32,
        coins: Option<Coins>,
    ) -> FloatTensor<Self>;

    /// `x / rms(x)·γ` over the last dimension.
    fn rms_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// Pairs of features of `[batch, seq, heads · width]`, rotated by angles `[1 or batch, seq, width / 2]`.
    fn rotary(
        input: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self>;

    /// `silu(gate)·up`.
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The sum of the cross entropies of `hidden` `[rows, d]` under a head `[classes, d]`, which is there
    /// unless it is quantized: `[1]`. `through` `[rows, r]` times `up` `[r, classes]` is added to the logits.
    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        #[extension_type] head: Maybe<Self>,
        quantized: Option<QuantizedWeight>,
        #[extension_type] through: Maybe<Self>,
        #[extension_type] up: Maybe<Self>,
        targets: Arc<Vec<i64>>,
        precision: MixedPrecision,
    ) -> FloatTensor<Self>;

    /// Norms of a matrix's columns, without a gradient.
    fn column_norms(matrix: FloatTensor<Self>) -> FloatTensor<Self>;

    /// [`linear`](Self::linear) of [`attention`](Self::attention).
    fn linear_of_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        #[extension_type] mask: Maybe<Self>,
        segments: Option<Segments>,
        #[extension_type] weight: Maybe<Self>,
        #[extension_type] bias: Maybe<Self>,
        #[extension_type] down: Maybe<Self>,
        #[extension_type] up: Maybe<Self>,
        settings: Attention,
        layer: Layer,
    ) -> FloatTensor<Self>;

    /// Attention of heads that are blocks of columns.
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        #[extension_type] mask: Maybe<Self>,
        segments: Option<Segments>,
        settings: Attention,
    ) -> FloatTensor<Self>;
}

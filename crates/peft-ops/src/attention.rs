//! Attention, and the linear layer behind it.

use burn::tensor::Tensor;
#[cfg(feature = "flex")]
use burn::{backend::Dispatch, tensor::DType};

#[cfg(feature = "flex")]
use crate::cpu::attention::Attention;
#[cfg(feature = "flex")]
use crate::extension::Fused;
#[cfg(feature = "flex")]
use crate::fused::{coins, fuses};
use crate::linear::Weight;
#[cfg(feature = "flex")]
use crate::linear::{Parts, thrown};
use crate::low_rank::LowRank;
use crate::options::AttentionOptions;
#[cfg(feature = "flex")]
use crate::options::MixedPrecision;
#[cfg(feature = "flex")]
use crate::precision::mixed_precision;
use crate::reference;
use crate::segments::Segments;

/// Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).
///
/// `query` is `[batch, queries, heads · width]`, `key` and `value` are
/// `[batch, keys, kv_heads · width]`: heads are neighbouring columns, as projections give them.
/// `mask`, `[batch, 1, keys]` or `[batch, queries, keys]`, is added to the scores and gets no
/// gradient. Returns `[batch, queries, heads · width]`.
///
/// The fused operation keeps no attention weights: the backward pass computes them again.
///
/// # Panics
///
/// If shapes or settings do not fit.
pub fn attention(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    mask: Option<Tensor<3>>,
    options: AttentionOptions,
) -> Tensor<3> {
    let inputs = AttentionInputs {
        query,
        key,
        value,
        mask,
        segments: None,
        options,
    };
    inputs.attention()
}

/// What [`attention`] is applied to.
#[derive(Clone, Debug)]
pub struct AttentionInputs {
    /// `[batch, queries, heads · width]`.
    pub query: Tensor<3>,
    /// `[batch, keys, kv_heads · width]`.
    pub key: Tensor<3>,
    /// As the keys.
    pub value: Tensor<3>,
    /// Added to the scores, `[batch, 1 or queries, keys]`.
    pub mask: Option<Tensor<3>>,
    /// The documents of the last keys, of which each sees itself only; in the place of a mask.
    pub segments: Option<Segments>,
    /// Heads and the like.
    pub options: AttentionOptions,
}

/// A linear layer of [`attention`]: `attention(…) W + b + s·(drop(attention(…)) A) B`, as [`linear`](crate::linear).
///
/// The backward pass keeps queries, keys and values only: where the layer is trained or adapted, its input is
/// computed again.
///
/// # Panics
///
/// If shapes or settings do not fit.
pub fn linear_of_attention(
    inputs: AttentionInputs,
    weight: impl Into<Weight>,
    bias: Option<Tensor<1>>,
    low_rank: Option<LowRank>,
) -> Tensor<3> {
    inputs.check();
    let weight = weight.into();
    let low_rank = low_rank.map(|low_rank| low_rank.cast(inputs.query.dtype()));
    #[cfg(feature = "flex")]
    if inputs.fuses() && weight.fuses() {
        let coins = low_rank
            .as_ref()
            .and_then(|low_rank| thrown(low_rank, &inputs.query));
        let [batch, queries, width] = inputs.query.dims();
        let parts = Parts::new([batch * queries, width], weight, bias, low_rank, coins);
        let settings = inputs.settings();
        return Tensor::from_dispatch(<Dispatch as Fused>::linear_of_attention(
            inputs.query.into_dispatch(),
            inputs.key.into_dispatch(),
            inputs.value.into_dispatch(),
            inputs.mask.map(Tensor::into_dispatch).into(),
            inputs.segments,
            parts.weight,
            parts.bias,
            parts.down,
            parts.up,
            settings,
            parts.layer,
        ));
    }
    crate::linear(inputs.composed(), weight, bias, low_rank)
}

impl AttentionInputs {
    /// [`attention`] of these.
    ///
    /// # Panics
    ///
    /// If shapes or settings do not fit.
    pub fn attention(self) -> Tensor<3> {
        self.check();
        #[cfg(feature = "flex")]
        if self.fuses() {
            let settings = self.settings();
            return Tensor::from_dispatch(<Dispatch as Fused>::attention(
                self.query.into_dispatch(),
                self.key.into_dispatch(),
                self.value.into_dispatch(),
                self.mask.map(Tensor::into_dispatch).into(),
                self.segments,
                settings,
            ));
        }
        self.composed()
    }

    fn check(&self) {
        let [batch, queries, wide] = self.query.dims();
        let [_, keys, narrow] = self.key.dims();
        let AttentionOptions {
            heads, kv_heads, ..
        } = self.options;
        assert!(
            heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && wide % heads == 0,
            "{wide} columns of queries, {heads} heads, {kv_heads} of keys: each must divide the one before",
        );
        assert_eq!(narrow, wide / heads * kv_heads, "the width of the keys");
        for (what, tensor) in [("keys", &self.key), ("values", &self.value)] {
            assert_eq!(
                tensor.dims(),
                [batch, keys, narrow],
                "the shape of the {what}"
            );
        }
        if let Some(mask) = &self.mask {
            let [items, rows, columns] = mask.dims();
            assert!(
                items == batch && (rows == 1 || rows == queries) && columns == keys,
                "a mask of [{items}, {rows}, {columns}] for {batch} x {queries} queries and {keys} keys",
            );
        }
        if let Some(segments) = &self.segments {
            let length = segments.length();
            assert!(
                segments.rows() == batch && length <= keys,
                "segments of {} x {length} places for {batch} x {keys} keys",
                segments.rows(),
            );
            assert!(
                queries <= keys && self.mask.is_none(),
                "segments are told of {keys} keys for {queries} queries, and there is no mask beside them"
            );
        }
        assert!(
            !self.options.causal || queries <= keys,
            "{queries} queries and {keys} keys: the first queries would see none"
        );
    }

    #[cfg(feature = "flex")]
    fn fuses(&self) -> bool {
        let mask = self.mask.as_ref();
        fuses(&self.query) && mask.is_none_or(|mask| mask.dtype() == DType::F32)
    }

    #[cfg(feature = "flex")]
    fn settings(&self) -> Attention {
        let [batch, queries, wide] = self.query.dims();
        let options = self.options;
        let drops = options.dropout > 0.0 && self.query.is_autodiff();
        let width = wide / options.heads;
        Attention {
            batch,
            queries,
            keys: self.key.dims()[1],
            heads: options.heads,
            kv_heads: options.kv_heads,
            width,
            scale: options.scale(width) as f32,
            causal: options.causal,
            coins: drops.then(|| coins(&self.query.device(), options.dropout)),
            rounded: mixed_precision() == MixedPrecision::Bf16,
        }
    }

    fn composed(self) -> Tensor<3> {
        let mask = self.segments.map(|segments| {
            let [_, queries, _] = self.query.dims();
            let keys = self.key.dims()[1];
            segments.mask([queries, keys], &self.query.device())
        });
        let mask = mask.or(self.mask);
        #[cfg(feature = "cube")]
        if self.query.is_autodiff()
            && self.options.dropout <= 0.0
            && crate::gpu::is_cube(&self.query.device())
        {
            return crate::gpu::attention(self.query, self.key, self.value, mask, self.options);
        }
        reference::attention(self.query, self.key, self.value, mask, self.options)
    }
}

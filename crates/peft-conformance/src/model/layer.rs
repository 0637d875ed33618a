//! One layer of the transformer: attention, then the feed-forward part, each with a norm behind it.

use burn::module::{Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Bool, Device, Tensor};
use peft_core::method::SiteContext;
use peft_core::nn::{AdaptedForward, adapted_gelu};
use peft_core::ops::{AttentionOptions, attention, layer_norm};
use peft_core::{Site, SiteKind};

use super::{HEADS, WIDTH};

const INNER: usize = 64;
/// Added to the variance.
const EPSILON: f64 = 1e-12;

/// One layer.
#[derive(Module, Debug)]
pub struct Layer {
    /// Attention.
    pub attention: Attention,
    /// The first half of the feed-forward part.
    pub intermediate: Intermediate,
    /// The second half of the feed-forward part.
    pub output: Output,
}

/// Attention and its output.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys and values.
    pub self_attention: SelfAttention,
    /// The output.
    pub output: Output,
}

/// Attention without the output projection.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Queries.
    pub query: Linear,
    /// Keys.
    pub key: Linear,
    /// Values.
    pub value: Linear,
    /// Where prefixes are put in front of keys and values.
    pub prefix: Site,
}

/// Projection to 64 features.
#[derive(Module, Debug)]
pub struct Intermediate {
    /// Projection.
    pub dense: Linear,
}

/// Projection to 32 features, adapters of the output, residual, norm.
#[derive(Module, Debug)]
pub struct Output {
    /// Projection.
    pub dense: Linear,
    /// Norm of the sum with the residual.
    pub layer_norm: LayerNorm,
    /// Where adapters act on the projected states, before the residual is added.
    pub site: Site,
}

pub(super) fn norm(device: &Device) -> LayerNorm {
    LayerNormConfig::new(WIDTH)
        .with_epsilon(EPSILON)
        .init(device)
}

pub(super) fn normalised(norm: &LayerNorm, hidden: Tensor<3>) -> Tensor<3> {
    let beta = norm.beta.as_ref().map(Param::val);
    layer_norm(hidden, None, norm.gamma.val(), beta, EPSILON, 0.0)
}

/// What is added to the attention scores, `[batch, 1, seq]`, for `padding` `[batch, seq]`.
pub(super) fn attention_mask(padding: Tensor<2, Bool>, device: &Device) -> Tensor<3> {
    let padding = padding.unsqueeze_dim::<3>(1);
    Tensor::zeros(padding.dims(), device).mask_fill(padding, f32::MIN)
}

impl Layer {
    pub(super) fn new(device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let projection = || linear(WIDTH, WIDTH);
        let output = |from, kind| Output {
            dense: linear(from, WIDTH),
            layer_norm: norm(device),
            site: Site::new(kind, WIDTH),
        };
        Self {
            attention: Attention {
                self_attention: SelfAttention {
                    query: projection(),
                    key: projection(),
                    value: projection(),
                    prefix: Site::new(SiteKind::KeyValue, WIDTH).with_heads(HEADS),
                },
                output: output(WIDTH, SiteKind::AttentionOutput),
            },
            intermediate: Intermediate {
                dense: linear(WIDTH, INNER),
            },
            output: output(INNER, SiteKind::FeedForwardOutput),
        }
    }

    pub(super) fn forward(&self, hidden: Tensor<3>, mask: Option<Tensor<3>>) -> Tensor<3> {
        let context = self.attention.self_attention.forward(hidden.clone(), mask);
        let projected = self.attention.output.dense.adapted(context);
        let hidden = self.attention.output.forward(projected, hidden);
        let inner = self.intermediate.dense.adapted(hidden.clone());
        let projected = adapted_gelu(&self.output.dense, inner);
        self.output.forward(projected, hidden)
    }
}

impl SelfAttention {
    fn forward(&self, hidden: Tensor<3>, mask: Option<Tensor<3>>) -> Tensor<3> {
        let query = self.query.adapted(hidden.clone());
        let key = self.key.adapted(hidden.clone());
        let value = self.value.adapted(hidden);
        let (key, value, mask) = self.prefix.key_value(key, value, mask);
        attention(query, key, value, mask, AttentionOptions::new(HEADS))
    }
}

impl Output {
    /// The norm of the projected states, after the adapters, and the residual.
    fn forward(&self, projected: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let norm = |hidden| normalised(&self.layer_norm, hidden);
        let context = SiteContext::post_norm(residual.clone(), &norm);
        norm(self.site.hidden(projected, &context) + residual)
    }
}

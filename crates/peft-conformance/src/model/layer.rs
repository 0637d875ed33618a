//! One layer of the transformer: attention, then the feed-forward part, each with a norm behind it.

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Bool, Device, Tensor};
use peft_core::nn::{
    AdaptedForward, AttentionContext, ForwardContext, HiddenState, PrefixContext, SiteContext,
    adapted_gelu, adapted_layer_norm, adapted_tokens,
};
use peft_core::ops::{AttentionOptions, attention};
use peft_core::{AttentionSite, HiddenSite, KeyValueSite, PromptSite};

use super::{HEADS, WIDTH};

const INNER: usize = 64;
/// Added to the variance.
const EPSILON: f64 = 1e-12;

/// One layer.
#[derive(Module, Debug)]
pub struct Layer {
    /// Where prompts are put in front of the stream before this layer.
    pub prompt: PromptSite,
    /// Attention.
    pub attention: Attention,
    /// The first half of the feed-forward part.
    pub intermediate: Intermediate,
    /// The second half of the feed-forward part.
    pub output: Output,
    /// Where adapters act on the layer's output.
    pub site: HiddenSite,
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
    pub prefix: KeyValueSite,
    /// Where adapters act on what the heads give.
    pub heads_site: AttentionSite,
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
    pub site: HiddenSite,
}

pub(super) fn norm(device: &Device) -> LayerNorm {
    LayerNormConfig::new(WIDTH)
        .with_epsilon(EPSILON)
        .init(device)
}

pub(super) fn normalised(
    norm: &LayerNorm,
    hidden: Tensor<3>,
    context: &ForwardContext,
) -> Tensor<3> {
    adapted_layer_norm(norm, EPSILON, (hidden, 0.0), None, context)
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
        let output = |from, state| Output {
            dense: linear(from, WIDTH),
            layer_norm: norm(device),
            site: HiddenSite::new(state, WIDTH).with_optional_end(),
        };
        Self {
            prompt: PromptSite::of_stream(WIDTH),
            attention: Attention {
                self_attention: SelfAttention {
                    query: projection(),
                    key: projection(),
                    value: projection(),
                    prefix: KeyValueSite::new(WIDTH).with_heads(HEADS),
                    heads_site: AttentionSite::new(WIDTH),
                },
                output: output(WIDTH, HiddenState::AttentionOutput),
            },
            intermediate: Intermediate {
                dense: linear(WIDTH, INNER),
            },
            output: output(INNER, HiddenState::FeedForwardOutput),
            site: HiddenSite::new(HiddenState::BlockOutput, WIDTH),
        }
    }

    pub(super) fn forward(
        &self,
        hidden: Tensor<3>,
        mask: Option<Tensor<3>>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let Attention {
            self_attention,
            output,
        } = &self.attention;
        let attended = self_attention.forward(hidden.clone(), mask, context);
        let projected = output.dense.adapted_in(attended, context);
        let hidden = output.forward(projected, hidden, context);
        let inner = self.intermediate.dense.adapted_in(hidden.clone(), context);
        let projected = adapted_gelu(&self.output.dense, inner, context);
        let hidden = self.output.forward(projected, hidden, context);
        self.site.forward(hidden, &SiteContext::new(context))
    }
}

impl SelfAttention {
    fn forward(
        &self,
        hidden: Tensor<3>,
        mask: Option<Tensor<3>>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let query = self.query.adapted_in(hidden.clone(), context);
        let key = self.key.adapted_in(hidden.clone(), context);
        let value = self.value.adapted_in(hidden.clone(), context);
        let input = || hidden.clone();
        let around = PrefixContext::new(context, &input);
        let (key, value, mask) = self.prefix.add_prefix(key, value, mask, &around);
        let options = AttentionOptions::new(HEADS);
        let attended = attention(query.clone(), key, value, mask, options);
        let batch = query.dims()[0];
        let project = |tokens: Tensor<3>| {
            let through = |layer: &Linear| adapted_tokens(layer, tokens.clone(), batch, context);
            (through(&self.key), through(&self.value))
        };
        let around = AttentionContext::new(context, query, [HEADS; 2], &project);
        self.heads_site.forward(attended, &around)
    }
}

impl Output {
    /// The norm of the projected states, after the adapters, and the residual.
    fn forward(
        &self,
        projected: Tensor<3>,
        residual: Tensor<3>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let norm = |hidden| normalised(&self.layer_norm, hidden, context);
        let around = SiteContext::post_norm(context, residual.clone(), &norm);
        let hidden = self.site.forward(projected, &around);
        if self.site.is_end() {
            return hidden;
        }
        norm(hidden + residual)
    }
}

//! The attention part of a layer.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::tensor::{Bool, Device, Tensor};
use peft_core::nn::{
    AdaptedForward, AttentionContext, ForwardContext, HiddenState, PrefixContext, adapted_tokens,
    dropout_rate,
};
use peft_core::ops::{AttentionOptions, attention};
use peft_core::{AttentionSite, KeyValueSite};

use super::{BertConfig, BertResidual};

/// Attention and what follows it up to the next residual stream.
#[derive(Module, Debug)]
pub struct BertAttention {
    /// Upstream's `self`.
    pub self_attention: BertSelfAttention,
    /// Projection, residual and normalisation.
    pub output: BertResidual,
}

/// Multi-head self-attention without the output projection.
#[derive(Module, Debug)]
pub struct BertSelfAttention {
    /// Queries, `hidden_size` to `hidden_size`.
    pub query: Linear,
    /// Keys, `hidden_size` to `hidden_size`.
    pub key: Linear,
    /// Values, `hidden_size` to `hidden_size`.
    pub value: Linear,
    /// Dropout of the attention weights.
    pub dropout: Dropout,
    /// Where prefixes go in front of keys and values.
    pub prefix: KeyValueSite,
    /// Where adapters act on what the heads give.
    pub heads_site: AttentionSite,
    heads: usize,
}

impl BertAttention {
    pub(super) fn new(config: &BertConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        Self {
            self_attention: BertSelfAttention {
                query: config.linear(width, width, device),
                key: config.linear(width, width, device),
                value: config.linear(width, width, device),
                dropout: DropoutConfig::new(config.attention_probs_dropout_prob).init(),
                prefix: KeyValueSite::new(width).with_heads(config.num_attention_heads),
                heads_site: AttentionSite::new(width),
                heads: config.num_attention_heads,
            },
            output: BertResidual::new(config, width, HiddenState::AttentionOutput, device),
        }
    }

    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        mask: Option<&AttentionMask>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let attn_output = self.self_attention.forward(x.clone(), mask, context);
        self.output.forward(attn_output, x, context)
    }
}

/// What is added to the attention scores, `[batch, 1, seq]`; built once per forward pass.
pub(super) struct AttentionMask(Tensor<3>);

impl AttentionMask {
    /// From `padding` `[batch, seq]`, true where padded, for hidden states on `device`.
    pub(super) fn new(padding: Tensor<2, Bool>, device: &Device) -> Self {
        let [batch, length] = padding.dims();
        // Upstream's value: finite, so that a row of nothing but padding gives no NaN.
        let hidden = padding.reshape([batch, 1, length]);
        Self(Tensor::zeros([batch, 1, length], device).mask_fill(hidden, f32::MIN))
    }
}

impl BertSelfAttention {
    /// Context `[batch, seq, hidden_size]` for `x` of the same shape.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        mask: Option<&AttentionMask>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let options = AttentionOptions {
            dropout: dropout_rate(&self.dropout),
            ..AttentionOptions::new(self.heads)
        };
        let query = self.query.adapted_in(x.clone(), context);
        let key = self.key.adapted_in(x.clone(), context);
        let value = self.value.adapted_in(x.clone(), context);
        let input = || x.clone();
        let around = PrefixContext::new(context, &input);
        let mask = mask.map(|mask| mask.0.clone());
        let (key, value, mask) = self.prefix.add_prefix(key, value, mask, &around);
        if !self.heads_site.is_active() {
            return attention(query, key, value, mask, options);
        }
        let attended = attention(query.clone(), key, value, mask, options);
        let batch = query.dims()[0];
        let project = |tokens: Tensor<3>| {
            let through = |layer: &Linear| adapted_tokens(layer, tokens.clone(), batch, context);
            (through(&self.key), through(&self.value))
        };
        let heads = [self.heads, self.heads];
        let around = AttentionContext::new(context, query, heads, &project);
        self.heads_site.forward(attended, &around)
    }
}

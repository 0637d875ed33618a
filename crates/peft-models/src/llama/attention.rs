//! The attention part of a layer.

use burn::module::Module;
use burn::nn::{Linear, RmsNorm};
use burn::tensor::{Device, Tensor};
use peft_core::nn::{
    AdaptedForward, AttentionContext, ForwardContext, PrefixContext, adapted_attention,
    adapted_norm, adapted_tokens,
};
use peft_core::ops::{AttentionInputs, AttentionOptions, Rotary, Segments, rotary};
use peft_core::{AttentionSite, KeyValueSite};

use super::LlamaConfig;
use super::cache::LayerCache;

/// Self-attention of grouped queries with rotary positions.
#[derive(Module, Debug)]
pub struct LlamaAttention {
    /// Queries, `hidden_size` to `num_attention_heads · head_dim`.
    pub q_proj: Linear,
    /// Keys, `hidden_size` to `num_key_value_heads · head_dim`.
    pub k_proj: Linear,
    /// Values, as the keys.
    pub v_proj: Linear,
    /// The way back to `hidden_size`.
    pub o_proj: Linear,
    /// Where prefixes go in front of keys and values.
    pub prefix: KeyValueSite,
    /// Where adapters act on what the heads give.
    pub heads_site: AttentionSite,
    heads: usize,
    kv_heads: usize,
}

/// What all layers share in one forward pass.
#[derive(Clone, Debug)]
pub(super) struct Positions {
    /// What adapters see of the forward pass.
    pub(super) context: ForwardContext,
    pub(super) angles: Rotary,
    /// Added to the scores, `[batch, 1 or queries, keys]`.
    pub(super) mask: Option<Tensor<3>>,
    /// In the place of a mask.
    pub(super) segments: Option<Segments>,
    /// How many rows have positions of their own; 1 where all have the same.
    pub(super) rows: usize,
}

impl LlamaAttention {
    pub(super) fn new(config: &LlamaConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        let wide = config.num_attention_heads * config.head_dim;
        let narrow = config.num_key_value_heads * config.head_dim;
        let linear = |d_in, d_out, bias| config.linear(d_in, d_out, bias, device);
        Self {
            q_proj: linear(width, wide, config.qkv_bias),
            k_proj: linear(width, narrow, config.qkv_bias),
            v_proj: linear(width, narrow, config.qkv_bias),
            o_proj: linear(wide, width, config.o_bias),
            prefix: KeyValueSite::new(narrow)
                .with_heads(config.num_key_value_heads)
                .with_input_width(width),
            heads_site: AttentionSite::new(width),
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
        }
    }

    /// The output `[batch, seq, hidden_size]` for the stream `x` of that shape, which `norm` normalises; with a
    /// cache, for what follows it.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        norm: &RmsNorm,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let context = &positions.context;
        let query = rotary(
            adapted_norm(&self.q_proj, norm, x.clone(), context),
            &positions.angles,
            self.heads,
        );
        let key = rotary(
            adapted_norm(&self.k_proj, norm, x.clone(), context),
            &positions.angles,
            self.kv_heads,
        );
        let value = adapted_norm(&self.v_proj, norm, x.clone(), context);
        let input = || norm.adapted_in(x.clone(), context);
        let mask = positions.mask.clone();
        let (key, value, mask) = match cache {
            // The prefix is in it.
            Some(cache) if !cache.is_empty() => {
                let (key, value) = cache.extend(key, value);
                (key, value, mask)
            }
            cache => {
                let (key, value, mask) =
                    self.prefix
                        .add_prefix(key, value, mask, &PrefixContext::new(context, &input));
                if let Some(cache) = cache {
                    cache.extend(key.clone(), value.clone());
                }
                (key, value, mask)
            }
        };
        let options = AttentionOptions {
            kv_heads: self.kv_heads,
            causal: true,
            ..AttentionOptions::new(self.heads)
        };
        let inputs = AttentionInputs {
            query,
            key,
            value,
            mask,
            segments: positions.segments.clone(),
            options,
        };
        if !self.heads_site.is_active() {
            return adapted_attention(&self.o_proj, inputs, context);
        }
        let query = inputs.query.clone();
        let batch = query.dims()[0];
        let project = |tokens: Tensor<3>| {
            let through = |layer: &Linear| adapted_tokens(layer, tokens.clone(), batch, context);
            (through(&self.k_proj), through(&self.v_proj))
        };
        let heads = [self.heads, self.kv_heads];
        let around = AttentionContext::new(context, query, heads, &project);
        let attended = self.heads_site.forward(inputs.attention(), &around);
        self.o_proj.adapted_in(attended, context)
    }
}

//! A decoder layer: attention, then a feed-forward part, each on the normalised hidden state.

use burn::module::Module;
use burn::nn::{Linear, RmsNorm};
use burn::tensor::{Device, Tensor};
use peft_core::nn::{
    AdaptedForward, ForwardContext, HiddenState, SiteContext, adapted_norm, adapted_swiglu,
};
use peft_core::{HiddenSite, PromptSite};

use super::LlamaConfig;
use super::attention::{LlamaAttention, Positions};
use super::cache::LayerCache;

/// One layer.
#[derive(Module, Debug)]
pub struct LlamaLayer {
    /// Where virtual tokens go in front of the stream before this layer.
    pub prompt: PromptSite,
    /// Normalisation before attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: LlamaAttention,
    /// Where adapters act on attention's output.
    pub attention_site: HiddenSite,
    /// Normalisation before the feed-forward part.
    pub post_attention_layernorm: RmsNorm,
    /// The feed-forward part.
    pub mlp: LlamaMlp,
    /// Where adapters act on the feed-forward part's output.
    pub feed_forward_site: HiddenSite,
    /// Where adapters act on the layer's output.
    pub site: HiddenSite,
}

/// The feed-forward part, SwiGLU (Shazeer 2020).
#[derive(Module, Debug)]
pub struct LlamaMlp {
    /// The gate, `hidden_size` to `intermediate_size`.
    pub gate_proj: Linear,
    /// What is gated, `hidden_size` to `intermediate_size`.
    pub up_proj: Linear,
    /// The way back to `hidden_size`.
    pub down_proj: Linear,
}

impl LlamaMlp {
    /// The output for the stream `x`, which `norm` normalises.
    fn forward(&self, x: Tensor<3>, norm: &RmsNorm, context: &ForwardContext) -> Tensor<3> {
        let gate = adapted_norm(&self.gate_proj, norm, x.clone(), context);
        let up = adapted_norm(&self.up_proj, norm, x, context);
        adapted_swiglu(&self.down_proj, gate, up, context)
    }
}

impl LlamaLayer {
    pub(super) fn new(config: &LlamaConfig, device: &Device) -> Self {
        let (width, inside) = (config.hidden_size, config.intermediate_size);
        let linear = |d_in, d_out| config.linear(d_in, d_out, config.mlp_bias, device);
        Self {
            prompt: PromptSite::of_stream(width),
            input_layernorm: config.norm(device),
            self_attn: LlamaAttention::new(config, device),
            attention_site: HiddenSite::new(HiddenState::AttentionOutput, width)
                .with_name("self_attn")
                .with_optional_end(),
            post_attention_layernorm: config.norm(device),
            mlp: LlamaMlp {
                gate_proj: linear(width, inside),
                up_proj: linear(width, inside),
                down_proj: linear(inside, width),
            },
            feed_forward_site: HiddenSite::new(HiddenState::FeedForwardOutput, width)
                .with_name("mlp")
                .with_optional_end(),
            site: HiddenSite::new(HiddenState::BlockOutput, width),
        }
    }

    /// The stream `[batch, seq, hidden_size]` after this layer.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let norm = &self.input_layernorm;
        let context = &positions.context;
        let attn_output = self.self_attn.forward(x.clone(), norm, positions, cache);
        let x = add(&self.attention_site, attn_output, norm, x, context);
        let norm = &self.post_attention_layernorm;
        let mlp_output = self.mlp.forward(x.clone(), norm, context);
        let x = add(&self.feed_forward_site, mlp_output, norm, x, context);
        if !self.site.is_active() {
            return x;
        }
        self.site.forward(x, &SiteContext::new(context))
    }
}

/// The stream with a sublayer's output, as the adapters at its site leave it.
fn add(
    site: &HiddenSite,
    output: Tensor<3>,
    norm: &RmsNorm,
    x: Tensor<3>,
    context: &ForwardContext,
) -> Tensor<3> {
    if !site.is_active() {
        return x + output;
    }
    let sublayer_input = norm.adapted_in(x.clone(), context);
    let around = SiteContext::pre_norm(context, sublayer_input, x.clone());
    let output = site.forward(output, &around);
    if site.is_end() { output } else { x + output }
}

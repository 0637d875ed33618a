//! LLaMA-Adapter: prompts that attention looks at apart from the text, behind a gate that begins closed.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::method::{
    Adapter, AttentionAdapter, AttentionContext, Common, Layout, Method, Plan, SiteKind,
    method_config,
};
use peft_core::ops::{AttentionOptions, attention};
use peft_core::{Error, Result};

/// `attention(q, K, V) + g · attention(q, P Wₖ, P Wᵥ)`: the layer's own projections make keys and values of P.
#[derive(Module, Adapter, Debug)]
pub struct AdaptionPrompt {
    /// P, `[1, adapter_len, d]`.
    #[tensor("adaption_prompt")]
    pub prompt: Param<Tensor<3>>,
    /// g, `[1]`.
    #[tensor("adaption_gate")]
    pub gate: Param<Tensor<1>>,
}

impl AttentionAdapter for AdaptionPrompt {
    fn forward(&self, attended: Tensor<3>, context: &AttentionContext<'_>) -> Tensor<3> {
        let (key, value) = context.key_value(self.prompt.val().squeeze_dim(0));
        let options = AttentionOptions {
            kv_heads: context.kv_heads,
            ..AttentionOptions::new(context.heads)
        };
        let added = attention(context.query.clone(), key, value, None, options);
        attended + added * self.gate.val().unsqueeze()
    }
}

/// LLaMA-Adapter's configuration. Fields are called as in Hugging Face PEFT's `AdaptionPromptConfig`.
#[method_config(
    ADAPTION_PROMPT, peft_type = "ADAPTION_PROMPT", title = "LLaMA-Adapter", family = SoftPrompt,
    new(adapter_len, adapter_layers), identity_at_init,
    reference = "Zhang et al. 2023, LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention, section 3"
)]
pub struct AdaptionPromptConfig {
    /// How many tokens the prompt of a layer has. At least 1. They take none of the model's positions. Without a default:
    /// 0 is refused.
    #[field(at_least = 1)]
    pub adapter_len: usize,
    /// How many attention layers have a prompt, counted from the last. At least 1. Without a default: 0 is refused.
    #[field(at_least = 1)]
    pub adapter_layers: usize,
    /// What the attention layers among which they are counted are called: the last segment of their names, as in
    /// `self_attn`. Default: all attention layers; recorded when attached.
    pub target_modules: Option<String>,
    /// Fields that every method has.
    pub common: Common,
}

/// The last segment of a name.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

impl Method for AdaptionPromptConfig {
    // Upstream wraps the attention layers, as tuners do.
    fn is_prompt_learning(&self) -> bool {
        false
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        if layout.attention_sites().next().is_none() {
            return Err(layout.no_site(ADAPTION_PROMPT.title, SiteKind::Attention));
        }
        let wanted = self.target_modules.as_deref();
        let fits = |name: &str| wanted.is_none_or(|wanted| last(name) == wanted);
        let sites: Vec<_> = layout.attention_sites().collect();
        let chosen: Vec<_> = sites.iter().filter(|site| fits(&site.name)).collect();
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(ADAPTION_PROMPT.title, field, value, expected))
        };
        if chosen.is_empty() {
            let known = last(&sites[0].name);
            let expected = format!("what the model's attention layers are called, as in `{known}`");
            return refuse("target_modules", &wanted, &expected);
        }
        let Some(skipped) = chosen.len().checked_sub(self.adapter_layers) else {
            let expected = format!("at most {}, the model's attention layers", chosen.len());
            return refuse("adapter_layers", &self.adapter_layers, &expected);
        };
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        for site in &chosen[skipped..] {
            let init = plan.init();
            let state = AdaptionPrompt {
                prompt: init.normal([1, self.adapter_len, site.width], 1.0, like),
                gate: init.zeros([1], like),
            };
            plan.adapt_attention(**site, state);
        }
        plan.set_config_field("target_modules", last(&chosen[0].name));
        Ok(())
    }
}

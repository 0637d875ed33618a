//! The prompt of one task: a point of the space that prompts of several tasks have in common.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use peft_core::method::{
    Adapter, CheckpointKey, Common, Layout, Method, MethodConfig as _, Plan, PromptAdapter,
    method_config,
};
use peft_core::{Error, Result};

use super::decoder::{PromptDecoder, decoded};
use crate::prompt_encoder::MlpLayer;
use crate::vocabulary::only_site;

/// A point, and the network that computes the virtual tokens from it. The network is not trained.
#[derive(Module, Debug)]
pub struct IntrinsicPrompt {
    /// z, `[intrinsic_dim]`.
    pub intrinsic: Param<Tensor<1>>,
    /// The decoder's first layer, `[intrinsic_dim, h]`.
    pub inner: MlpLayer,
    /// Its second layer, `[h, virtual_tokens · d]`.
    pub outer: MlpLayer,
    /// How many virtual tokens.
    pub tokens: usize,
}

impl Adapter for IntrinsicPrompt {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let layer = |layer: &str| {
            let root = |field: &str| {
                let (field, key) = (
                    format!("{layer}.{field}"),
                    format!("decoder.{layer}.{field}"),
                );
                CheckpointKey::root(&field, &key)
            };
            [root("weight").transposed(), root("bias")]
        };
        let mut tensors = vec![CheckpointKey::root("intrinsic", "intrinsic")];
        tensors.extend(layer("inner"));
        tensors.extend(layer("outer"));
        tensors
    }
}

impl PromptAdapter for IntrinsicPrompt {
    fn virtual_tokens(&self) -> usize {
        self.tokens
    }

    fn prompt(&self) -> Tensor<2> {
        let code = self.intrinsic.val().unsqueeze();
        let flat = decoded(code, &self.inner, &self.outer);
        let width = flat.dims()[1] / self.tokens;
        flat.reshape([self.tokens, width])
    }
}

/// Intrinsic prompt tuning's configuration.
#[method_config(
    INTRINSIC_PROMPT, name = "intrinsic-prompt-tuning", peft_type = "INTRINSIC_PROMPT_TUNING", title = "Intrinsic prompt tuning", family = SoftPrompt,
    new(num_virtual_tokens, intrinsic_dim),
    reference = "Qin et al. 2021, Exploring Universal Intrinsic Task Subspace via Prompt Tuning, intrinsic subspace tuning"
)]
pub struct IntrinsicPromptConfig {
    /// How many virtual tokens. Default: 10. At least 1; each takes one of the model's positions.
    #[field(default = 10, at_least = 1)]
    pub num_virtual_tokens: usize,
    /// Dimensions of the space: the numbers that are trained. Default: 5. At least 1.
    #[field(default = 5, at_least = 1)]
    pub intrinsic_dim: usize,
    /// Width inside the decoder. Default: the embeddings'; recorded when attached. At least 1.
    #[field(at_least = 1)]
    pub decoder_hidden_size: Option<usize>,
    /// The decoder; not stored, as the adapter's file holds it. Default: one with random weights, whose space no task
    /// has shaped.
    #[field(skip, no_builder)]
    pub decoder: Option<PromptDecoder>,
    /// Where the point starts, `intrinsic_dim` numbers; not stored. Default: zeros.
    #[field(skip)]
    pub start: Option<Vec<f32>>,
    /// Width of the embeddings; recorded when attached.
    #[field(any)]
    pub token_dim: Option<usize>,
    /// Fields that every method has.
    pub common: Common,
}

impl IntrinsicPromptConfig {
    /// Of the prompts that this decoder computes.
    #[must_use]
    pub fn of_decoder(decoder: PromptDecoder) -> Self {
        let [intrinsic_dim, hidden, _] = decoder.widths();
        Self {
            decoder_hidden_size: Some(hidden),
            ..Self::new(decoder.tokens(), intrinsic_dim).with_decoder(decoder)
        }
    }

    fn with_decoder(mut self, decoder: PromptDecoder) -> Self {
        self.decoder = Some(decoder);
        self
    }
}

fn refuse(field: &'static str, value: impl std::fmt::Debug, expected: &str) -> Error {
    Error::config(INTRINSIC_PROMPT.title, field, value, expected)
}

impl Method for IntrinsicPromptConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if let Some(start) = &self.start
            && (start.len() != self.intrinsic_dim || start.iter().any(|value| !value.is_finite()))
        {
            let expected = format!("{} finite numbers, as `intrinsic_dim`", self.intrinsic_dim);
            return Err(refuse("start", start, &expected));
        }
        let Some(decoder) = &self.decoder else {
            return Ok(());
        };
        let [intrinsic_dim, hidden, _] = decoder.widths();
        for (field, found, expected) in [
            (
                "num_virtual_tokens",
                self.num_virtual_tokens,
                decoder.tokens(),
            ),
            ("intrinsic_dim", self.intrinsic_dim, intrinsic_dim),
            (
                "decoder_hidden_size",
                self.decoder_hidden_size.unwrap_or(hidden),
                hidden,
            ),
        ] {
            if found != expected {
                return Err(refuse(
                    field,
                    found,
                    &format!("{expected}, as the decoder has"),
                ));
            }
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let tokens = self.num_virtual_tokens;
        let site = only_site(layout, &INTRINSIC_PROMPT, tokens)?;
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        let decoder = self.decoder.as_ref().filter(|_| plan.is_new());
        let hidden = decoder.map(|decoder| decoder.widths()[1]);
        let hidden = hidden.or(self.decoder_hidden_size).unwrap_or(site.width);
        let flat = tokens.saturating_mul(site.width);
        let [inner, outer] = if let Some(decoder) = decoder {
            let [_, _, found] = decoder.widths();
            if found != flat {
                let found = format!("of {} features", found / tokens);
                let expected = format!("of {} features, as the model's embeddings", site.width);
                return Err(refuse("decoder", found, &expected));
            }
            decoder.layers(like)
        } else {
            let mut layer = |widths| MlpLayer::new(widths, plan.init(), like);
            [layer([self.intrinsic_dim, hidden]), layer([hidden, flat])]
        };
        let intrinsic = match &self.start {
            Some(start) if plan.is_new() => {
                let start = TensorData::new(start.clone(), [start.len()]);
                Param::from_tensor(Tensor::from_data(start, like))
            }
            _ => plan.init().zeros([self.intrinsic_dim], like),
        };
        let state = IntrinsicPrompt {
            intrinsic,
            inner: frozen(inner),
            outer: frozen(outer),
            tokens,
        };
        plan.set_config_field("decoder_hidden_size", hidden);
        plan.set_config_field("token_dim", site.width);
        plan.add_prompt(site, state);
        Ok(())
    }
}

fn frozen(layer: MlpLayer) -> MlpLayer {
    MlpLayer {
        weight: layer.weight.set_require_grad(false),
        bias: layer.bias.set_require_grad(false),
    }
}

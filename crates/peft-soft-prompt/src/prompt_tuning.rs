//! Prompt tuning: virtual tokens before the embeddings.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::Result;
use peft_core::method::{
    Adapter, CheckpointKey, Common, Layout, Method, MethodConfig as _, Plan, PromptAdapter,
    SiteKind, method_config,
};

use crate::model_name::model_of;
use crate::prompt_adapterhub::AdapterHubPrompt;
use crate::prompt_init::PromptInit;
use crate::start::Start;
use crate::trained_prompt::TrainedPrompt;
use crate::vocabulary::only_site;

/// The virtual tokens.
#[derive(Module, Debug)]
pub struct SoftPrompt {
    /// Their embeddings, `[virtual_tokens, d]`.
    pub embeddings: Param<Tensor<2>>,
    /// In front of the key in AdapterHub's files: the name of the model without its head, with a dot.
    #[module(skip)]
    model: String,
    /// Whether they stand behind the text's first token.
    is_behind_first_token: bool,
}

impl Adapter for SoftPrompt {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let model = &self.model;
        let key = "prompt_tuning.prompt_tunings.{adapter}.prompt_embedding.weight";
        let adapterhub = CheckpointKey::root("embeddings", &format!("{model}{key}"));
        vec![CheckpointKey::root("embeddings", "prompt_embeddings").in_adapterhub(adapterhub)]
    }
}

impl PromptAdapter for SoftPrompt {
    fn virtual_tokens(&self) -> usize {
        self.embeddings.lazy_shape()[0]
    }

    fn prompt(&self) -> Tensor<2> {
        self.embeddings.val()
    }

    fn is_behind_first_token(&self) -> bool {
        self.is_behind_first_token
    }
}

/// Prompt tuning's configuration. Fields are called as in Hugging Face PEFT's
/// `PromptTuningConfig`.
#[method_config(
    PROMPT_TUNING, peft_type = "PROMPT_TUNING", title = "Prompt tuning", family = SoftPrompt, new(num_virtual_tokens),
    reference = "Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, section 2", to_json = PromptTuningConfig::json,
    parse = PromptTuningConfig::PARSE, recognises = PromptTuningConfig::RECOGNISES
)]
pub struct PromptTuningConfig {
    /// How many virtual tokens. Default: 10. At least 1; each takes one of the model's positions.
    #[field(default = 10, at_least = 1)]
    pub num_virtual_tokens: usize,
    /// Initial values. Default: random.
    pub prompt_tuning_init: PromptInit,
    /// The text for [`PromptInit::Text`].
    pub prompt_tuning_init_text: Option<String>,
    /// The text's token ids, without special tokens; not stored.
    #[field(skip)]
    pub init_token_ids: Vec<u32>,
    /// A prompt to start from, instead of all that (SPoT, Vu et al. 2022); not stored.
    #[field(skip)]
    pub source: Option<TrainedPrompt>,
    /// Writes files in AdapterHub's layout, with these further fields of its. Default: none, Hugging Face PEFT's layout.
    #[field(skip)]
    pub adapterhub: Option<AdapterHubPrompt>,
    /// Width of the embeddings; recorded when attached.
    #[field(any)]
    pub token_dim: Option<usize>,
    /// Fields that every method has.
    pub common: Common,
}

impl PromptTuningConfig {
    /// Starts from the embeddings of `text`, whose `token_ids` the model's tokenizer gives
    /// (without special tokens).
    #[must_use]
    pub fn with_text(mut self, text: impl Into<String>, token_ids: impl Into<Vec<u32>>) -> Self {
        self.prompt_tuning_init = PromptInit::Text;
        self.prompt_tuning_init_text = Some(text.into());
        self.init_token_ids = token_ids.into();
        self
    }
}

impl Method for PromptTuningConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        self.check_layout()
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let tokens = self.num_virtual_tokens;
        let site = if self.adapterhub.is_none() {
            only_site(layout, &PROMPT_TUNING, tokens)?
        } else {
            // AdapterHub's prompts have no positions, and the embeddings' norm is not for them: they are in front of the
            // first block.
            let first = layout.stream_sites().next();
            first.ok_or_else(|| layout.no_site(PROMPT_TUNING.title, SiteKind::Stream))?
        };
        let start = Start {
            method: &PROMPT_TUNING,
            init: self.prompt_tuning_init,
            token_ids: &self.init_token_ids,
            source: self.source.as_ref(),
            tokens,
        };
        let embeddings = match (&self.adapterhub, &self.source) {
            (Some(_), None) => {
                let (device, dtype) = layout.like();
                let shape = [tokens, site.width];
                // As AdapterHub.
                plan.init().uniform(shape, 0.5, (&device, dtype))
            }
            _ => start.draw(&site, layout, plan)?,
        };
        let width = match &self.adapterhub {
            None => "token_dim",
            Some(_) => "hidden_size",
        };
        plan.set_config_field(width, site.width);
        let model = model_of(&site.name);
        let is_behind_first_token = self.is_behind_first_token(layout)?;
        let prompt = SoftPrompt {
            embeddings,
            model,
            is_behind_first_token,
        };
        plan.add_prompt(site, prompt);
        Ok(())
    }
}

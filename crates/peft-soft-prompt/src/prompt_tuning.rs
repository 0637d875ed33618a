//! Prompt tuning: virtual tokens before the embeddings.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::method::{
    Adapter, Common, Layout, LayoutParam, LayoutSite, Method, MethodConfig as _, MethodInfo, Plan,
    PromptAdapter, SiteKind, TypedSite, method_config,
};
use peft_core::nn::Prompt;
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::prompt_adapterhub::AdapterHubPrompt;

/// The virtual tokens.
#[derive(Module, Adapter, Debug)]
pub struct SoftPrompt {
    /// Their embeddings, `[virtual_tokens, d]`.
    #[tensor(
        root = "prompt_embeddings",
        adapterhub = "prompt_tuning.prompt_tunings.{adapter}.prompt_embedding.weight"
    )]
    pub embeddings: Param<Tensor<2>>,
}

impl PromptAdapter for SoftPrompt {
    fn virtual_tokens(&self) -> usize {
        self.embeddings.lazy_shape()[0]
    }

    fn prompt(&self) -> Tensor<2> {
        self.embeddings.val()
    }
}

/// Where the virtual tokens start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum PromptInit {
    /// Normal with mean 0 and standard deviation 1, as torch initialises embeddings.
    #[default]
    Random,
    /// The embeddings of tokens drawn from the vocabulary.
    SampleVocab,
    /// The embeddings of a text's tokens, repeated or cut to the number of virtual tokens.
    Text,
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

    /// The rows of the embedding table to start from; none for random values.
    fn rows(&self, vocabulary: usize, plan: &mut Plan) -> Result<Option<Vec<usize>>> {
        let tokens = self.num_virtual_tokens;
        if let Some(id) = self
            .init_token_ids
            .iter()
            .find(|id| **id as usize >= vocabulary)
        {
            return Err(refuse(
                "init_token_ids",
                id,
                &format!("below {vocabulary}, the model's vocabulary"),
            ));
        }
        Ok(match self.prompt_tuning_init {
            PromptInit::Text => {
                let ids = self.init_token_ids.iter().map(|id| *id as usize);
                Some(ids.cycle().take(tokens).collect())
            }
            PromptInit::SampleVocab => Some(plan.init().indices(tokens, vocabulary)),
            PromptInit::Random => None,
        })
    }

    /// Initial embeddings, `[virtual_tokens, d]`.
    fn draw(
        &self,
        site: &LayoutSite,
        layout: &Layout,
        plan: &mut Plan,
    ) -> Result<Param<Tensor<2>>> {
        let tokens = self.num_virtual_tokens;
        // A checkpoint's values replace the initial ones, and its text is not tokenized again.
        if plan.is_new() && self.prompt_tuning_init != PromptInit::Random {
            let table = table(site, layout).ok_or_else(|| {
                let expected = "RANDOM: the model's site names no embedding table to start from (see `Site::with_name`)";
                refuse("prompt_tuning_init", self.prompt_tuning_init, expected)
            })?;
            if let Some(rows) = self.rows(table.shape()[0], plan)? {
                let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
                let rows = TensorData::new(rows, [tokens]);
                let rows = Tensor::<1, Int>::from_data(rows, &table.device());
                return Ok(Param::from_tensor(
                    table.value::<2>().select(0, rows).detach(),
                ));
            }
        }
        let like = layout.like();
        Ok(plan
            .init()
            .normal([tokens, site.width], 1.0, (&like.0, like.1)))
    }
}

fn refuse(field: &'static str, value: impl std::fmt::Debug, expected: &str) -> Error {
    Error::config(PROMPT_TUNING.title, field, value, expected)
}

/// Where a prompt of `tokens` goes: the model's one site for embeddings.
pub(crate) fn only_site<'a>(
    layout: &'a Layout,
    method: &'static MethodInfo,
    tokens: usize,
) -> Result<TypedSite<'a, Prompt>> {
    let sites = layout.prompt_sites();
    only(layout, sites, (method, SiteKind::Embeddings), tokens)
}

/// The one site of a kind.
fn only<'a>(
    layout: &'a Layout,
    mut sites: impl Iterator<Item = TypedSite<'a, Prompt>>,
    (method, kind): (&'static MethodInfo, SiteKind),
    tokens: usize,
) -> Result<TypedSite<'a, Prompt>> {
    let Some(site) = sites.next() else {
        return Err(layout.no_site(method.title, kind));
    };
    if sites.next().is_some() {
        let expected =
            "a model with one site for embeddings: the checkpoint has room for one prompt";
        return Err(Error::config(
            method.title,
            "num_virtual_tokens",
            tokens,
            expected,
        ));
    }
    Ok(site)
}

/// The embedding table whose output a site sees.
fn table<'a>(site: &LayoutSite, layout: &'a Layout) -> Option<&'a LayoutParam> {
    let layer = layout.layers.iter().find(|layer| layer.name == site.name)?;
    layout.param(layer, "weight")
}

impl Method for PromptTuningConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        self.check_layout()
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let tokens = self.num_virtual_tokens;
        let site = match &self.adapterhub {
            None => only_site(layout, &PROMPT_TUNING, tokens)?,
            // AdapterHub's prompts have no positions, and the embeddings' norm is not for them.
            Some(_) => {
                let kind = (&PROMPT_TUNING, SiteKind::Embedded);
                only(layout, layout.embedded_sites(), kind, tokens)?
            }
        };
        let text = self.prompt_tuning_init == PromptInit::Text;
        if text && plan.is_new() && self.init_token_ids.is_empty() {
            let expected = "give the text's tokens with `with_text`";
            return Err(refuse("init_token_ids", &self.init_token_ids, expected));
        }
        let embeddings = self.draw(&site, layout, plan)?;
        let width = match &self.adapterhub {
            None => "token_dim",
            Some(_) => "hidden_size",
        };
        plan.set_config_field(width, site.width);
        plan.add_prompt(site, SoftPrompt { embeddings });
        Ok(())
    }
}

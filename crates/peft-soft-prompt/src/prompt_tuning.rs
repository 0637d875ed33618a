//! Prompt tuning: virtual tokens before the embeddings.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::method::SiteKind;
use peft_core::method::{
    Adapter, CheckpointKey, Common, Family, Layout, LayoutParam, LayoutSite, Method, MethodInfo,
    Plan, PromptAdapter, TypedSite, by_peft_type, config_from_json, config_to_json,
};
use peft_core::nn::Prompt;
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Prompt tuning's registration.
pub static PROMPT_TUNING: MethodInfo = MethodInfo {
    name: "prompt-tuning",
    peft_type: "PROMPT_TUNING",
    title: "Prompt tuning",
    family: Family::SoftPrompt,
    reference: "Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, section 2",
    identity_at_init: false,
    mergeable: false,
    parse: config_from_json::<PromptTuningConfig>,
    recognises: by_peft_type,
};

/// The virtual tokens.
#[derive(Module, Debug)]
pub struct SoftPrompt {
    /// Their embeddings, `[virtual_tokens, d]`.
    pub embeddings: Param<Tensor<2>>,
}

impl Adapter for SoftPrompt {
    const METHOD: &'static str = "prompt tuning";

    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![CheckpointKey::root("embeddings", "prompt_embeddings")]
    }
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptTuningConfig {
    /// How many virtual tokens. Default: 10. At least 1; each takes one of the model's positions.
    #[serde(default = "default_virtual_tokens")]
    pub num_virtual_tokens: usize,
    /// Initial values. Default: random.
    #[serde(default)]
    pub prompt_tuning_init: PromptInit,
    /// The text for [`PromptInit::Text`].
    #[serde(default)]
    pub prompt_tuning_init_text: Option<String>,
    /// The text's token ids, without special tokens; not stored.
    #[serde(skip)]
    pub init_token_ids: Vec<u32>,
    /// Width of the embeddings; recorded when attached.
    #[serde(default)]
    pub token_dim: Option<usize>,
    /// Fields that every method has.
    #[serde(flatten)]
    pub common: Common,
}

fn default_virtual_tokens() -> usize {
    10
}

impl PromptTuningConfig {
    /// `num_virtual_tokens` random ones.
    pub fn new(num_virtual_tokens: usize) -> Self {
        Self {
            num_virtual_tokens,
            prompt_tuning_init: PromptInit::Random,
            prompt_tuning_init_text: None,
            init_token_ids: Vec::new(),
            token_dim: None,
            common: Common::default(),
        }
    }

    /// Starts from the embeddings of tokens drawn from the vocabulary.
    #[must_use]
    pub fn with_sampled_vocabulary(mut self) -> Self {
        self.prompt_tuning_init = PromptInit::SampleVocab;
        self
    }

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
    let mut sites = layout.prompt_sites();
    let Some(site) = sites.next() else {
        return Err(layout.no_site(method.title, SiteKind::Embeddings));
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
    fn info(&self) -> &'static MethodInfo {
        &PROMPT_TUNING
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn validate(&self) -> Result<()> {
        if self.num_virtual_tokens == 0 {
            return Err(refuse(
                "num_virtual_tokens",
                self.num_virtual_tokens,
                "at least 1",
            ));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let site = only_site(layout, &PROMPT_TUNING, self.num_virtual_tokens)?;
        let text = self.prompt_tuning_init == PromptInit::Text;
        if text && plan.is_new() && self.init_token_ids.is_empty() {
            let expected = "give the text's tokens with `with_text`";
            return Err(refuse("init_token_ids", &self.init_token_ids, expected));
        }
        let embeddings = self.draw(&site, layout, plan)?;
        plan.set_config_field("token_dim", site.width);
        plan.add_prompt(site, SoftPrompt { embeddings });
        Ok(())
    }

    fn to_json(&self) -> Value {
        // Upstream wants the tokenizer beside a text; trained values need neither.
        let stored = Self {
            prompt_tuning_init: PromptInit::Random,
            ..self.clone()
        };
        config_to_json(&stored, &PROMPT_TUNING)
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

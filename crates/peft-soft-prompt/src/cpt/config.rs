//! CPT's configuration.

use std::sync::Arc;

use peft_core::method::{
    Common, Layout, Method, MethodConfig as _, MethodHooks, Plan, States, Value, config_to_json,
    method_config,
};
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::kinds;
use super::state::{ContextForm, ContextPrompt, ContextToken, MovedContext};
use crate::vocabulary::{embeddings_of, only_site, table};

/// How much labels in the context count in the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WeightedLoss {
    /// All the same.
    #[default]
    None,
    /// Less, the earlier they come: [`CptConfig::opt_loss_decay_factor`].
    Decay,
}

/// CPT's configuration. Fields are called as in Hugging Face PEFT's `CPTConfig`.
#[method_config(
    CPT, peft_type = "CPT", title = "CPT", family = SoftPrompt, new(cpt_token_ids), to_json = CptConfig::json,
    reference = "Blau et al. 2024, Context-aware Prompt Tuning, section 3"
)]
pub struct CptConfig {
    /// The context's token ids, one virtual token each: examples with their answers. Default: `[0]`. At least one.
    #[field(default = vec![0])]
    pub cpt_token_ids: Vec<u32>,
    /// Kept for the reader; without effect, as upstream. Default: ones, recorded when attached.
    pub cpt_mask: Option<Vec<u32>>,
    /// What each token of the context is. 4k+1 is the template around the input of example k, 4k+2 its input, 4k+3 the
    /// template around its label, 4k+4 its label; 0 is none of them. Labels and 0 are not trained. Default: ones, recorded
    /// when attached.
    pub cpt_tokens_type_mask: Option<Vec<u32>>,
    /// How much labels in the context count in [`loss`](Self::loss). Default: all the same.
    pub opt_weighted_loss_type: WeightedLoss,
    /// With [`WeightedLoss::Decay`]: by what the weight of labels is multiplied from one example to the one before it.
    /// Default: 1. At least 0.
    #[field(default = 1.0, at_least = 0.0)]
    pub opt_loss_decay_factor: f64,
    /// The largest change of an input's token, as a norm, in a model of width 2048; in one of width d it is this times
    /// sqrt(d / 2048). Default: 0.1. Above 0.
    #[field(default = 0.1, above = 0.0)]
    pub opt_projection_epsilon: f64,
    /// The same for tokens of templates. Default: 0.1. Above 0.
    #[field(default = 0.1, above = 0.0)]
    pub opt_projection_format_epsilon: f64,
    /// How many virtual tokens; recorded when attached.
    #[field(any)]
    pub num_virtual_tokens: Option<usize>,
    /// Width of the embeddings; recorded when attached.
    #[field(any)]
    pub token_dim: Option<usize>,
    /// Encoders or decoders with a prompt; recorded when attached, always 1.
    #[field(any)]
    pub num_transformer_submodules: Option<usize>,
    /// Fields that every method has.
    pub common: Common,
}

impl CptConfig {
    // Upstream takes no other task.
    fn json(&self) -> Value {
        let mut json = config_to_json(self, &CPT);
        if self.common.task_type.is_none() {
            json["task_type"] = "CAUSAL_LM".into();
        }
        json
    }

    /// What each token of the context is.
    pub(super) fn types(&self) -> Vec<u32> {
        let given = self.cpt_tokens_type_mask.clone();
        given.unwrap_or_else(|| vec![kinds::INPUT_TEMPLATE; self.cpt_token_ids.len()])
    }

    /// What is known of each token, in a model of `width`.
    fn tokens(&self, width: usize) -> Arc<[ContextToken]> {
        let scale = (width as f64 / 2048.0).sqrt();
        let token = |number: u32| {
            let radius = match number % kinds::COUNT {
                kinds::INPUT_TEMPLATE | kinds::OUTPUT_TEMPLATE => {
                    Some(self.opt_projection_format_epsilon)
                }
                kinds::INPUT => Some(self.opt_projection_epsilon),
                _ => None,
            };
            ContextToken {
                trained: radius.is_some(),
                radius: radius.map_or(LABEL_RADIUS, |radius| (radius * scale) as f32),
            }
        };
        self.types().into_iter().map(token).collect()
    }
}

/// Of what is not trained.
const LABEL_RADIUS: f32 = 1e-10;

pub(super) fn refuse(field: &'static str, value: impl std::fmt::Debug, expected: &str) -> Error {
    Error::config(CPT.title, field, value, expected)
}

impl Method for CptConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        let count = self.cpt_token_ids.len();
        if count == 0 {
            let expected = "at least one token";
            return Err(refuse("cpt_token_ids", &self.cpt_token_ids, expected));
        }
        let lists = [
            ("cpt_mask", &self.cpt_mask),
            ("cpt_tokens_type_mask", &self.cpt_tokens_type_mask),
        ];
        for (field, list) in lists {
            if let Some(list) = list
                && list.len() != count
            {
                let expected =
                    format!("a list of {count} numbers, one for each of `cpt_token_ids`");
                return Err(refuse(field, list, &expected));
            }
        }
        if self.num_virtual_tokens.is_some_and(|other| other != count) {
            let expected = format!("{count}, the number of `cpt_token_ids`");
            return Err(refuse(
                "num_virtual_tokens",
                self.num_virtual_tokens,
                &expected,
            ));
        }
        let submodules = self.num_transformer_submodules;
        if submodules.is_some_and(|count| count != 1) {
            let expected = "1: prompts of encoder and decoder together are not supported";
            return Err(refuse("num_transformer_submodules", submodules, expected));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let count = self.cpt_token_ids.len();
        let site = only_site(layout, &CPT, count)?;
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        let shape = [count, site.width];
        // A file holds the virtual tokens, wherever they started.
        let form = if plan.is_new() {
            let ids = &self.cpt_token_ids;
            let table = table(&site, layout, &CPT, "cpt_token_ids", ids)?;
            let embeddings = embeddings_of(ids, table, &CPT, "cpt_token_ids")?;
            ContextForm::Moved(MovedContext {
                embeddings: embeddings.set_require_grad(false),
                delta: plan.init().zeros(shape, like),
            })
        } else {
            ContextForm::Prompt(plan.init().zeros(shape, like))
        };
        let tokens = self.tokens(site.width);
        plan.set_config_field("token_dim", site.width);
        plan.set_config_field("num_virtual_tokens", count);
        plan.set_config_field("num_transformer_submodules", 1);
        plan.set_config_field("cpt_tokens_type_mask", self.types());
        let mask = self.cpt_mask.clone();
        plan.set_config_field("cpt_mask", mask.unwrap_or_else(|| vec![1; count]));
        plan.add_prompt(site, ContextPrompt { form, tokens });
        Ok(())
    }

    fn schedule(&self, _steps: usize, _states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        Ok(Some(Box::new(Projection)))
    }
}

/// Changes stay within their balls.
#[derive(Debug)]
struct Projection;

impl MethodHooks for Projection {
    fn after_step(&mut self, _step: usize, states: &mut States) {
        states.edit::<ContextPrompt>(|_, state| state.project());
    }
}

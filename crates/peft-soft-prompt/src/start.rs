//! Where virtual tokens start.

use burn::module::Param;
use burn::tensor::Tensor;
use peft_core::method::{Layout, LayoutSite, MethodInfo, Plan};
use peft_core::{Error, Result};

use crate::prompt_init::PromptInit;
use crate::trained_prompt::TrainedPrompt;
use crate::vocabulary::{embeddings_of, table};

/// What a configuration says of it.
pub(crate) struct Start<'a> {
    pub(crate) method: &'static MethodInfo,
    pub(crate) init: PromptInit,
    /// Those of the text, for [`PromptInit::Text`].
    pub(crate) token_ids: &'a [u32],
    /// Instead of all of that.
    pub(crate) source: Option<&'a TrainedPrompt>,
    /// How many virtual tokens.
    pub(crate) tokens: usize,
}

impl Start<'_> {
    fn refuse(&self, field: &'static str, value: impl std::fmt::Debug, expected: &str) -> Error {
        Error::config(self.method.title, field, value, expected)
    }

    /// Initial embeddings, `[virtual_tokens, d]`.
    pub(crate) fn draw(
        &self,
        site: &LayoutSite,
        layout: &Layout,
        plan: &mut Plan,
    ) -> Result<Param<Tensor<2>>> {
        let (device, dtype) = layout.like();
        let shape = [self.tokens, site.width];
        // A checkpoint's values replace the initial ones, and its text is not tokenized again.
        if !plan.is_new() {
            return Ok(plan.init().zeros(shape, (&device, dtype)));
        }
        if let Some(source) = self.source {
            let found = source.dims();
            if found != shape {
                let expected = format!(
                    "{shape:?}, `num_virtual_tokens` and the width of the model's embeddings"
                );
                return Err(self.refuse("source", found, &expected));
            }
            let embeddings = source.tensor((&device, dtype));
            return Ok(Param::from_tensor(embeddings));
        }
        let table = || {
            let init = self.init;
            table(site, layout, self.method, "prompt_tuning_init", init)
        };
        let (table, ids) = match self.init {
            PromptInit::Random => {
                return Ok(plan.init().normal(shape, 1.0, (&device, dtype)));
            }
            PromptInit::SampleVocab => {
                let table = table()?;
                let rows = plan.init().indices(self.tokens, table.shape()[0]);
                (table, rows.into_iter().map(|row| row as u32).collect())
            }
            PromptInit::Text => {
                if self.token_ids.is_empty() {
                    let expected = "give the text's tokens with `with_text`";
                    return Err(self.refuse("init_token_ids", self.token_ids, expected));
                }
                let table = table()?;
                // Those that are cut off are looked at, too.
                embeddings_of(self.token_ids, table, self.method, "init_token_ids")?;
                let ids: Vec<u32> = self
                    .token_ids
                    .iter()
                    .copied()
                    .cycle()
                    .take(self.tokens)
                    .collect();
                (table, ids)
            }
        };
        embeddings_of(&ids, table, self.method, "init_token_ids")
    }
}

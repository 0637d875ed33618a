//! Generation: what a model needs for it, from a prompt to its last token.

use std::borrow::Cow;

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::nn::{ForwardContext, TaskIds};
use peft_core::state::AdapterState as _;
use peft_core::{Composition, PeftModule as _};

use super::decode::Limits;
use super::routing::Reader;
use super::stream::TextStream;
use super::{GenerateConfig, GenerateError, Generated, StoppedBy, TextRouting};
use crate::{Llama, LlamaTokenizer};

/// A model that generates, with weights for its adapters where they are routed: [`Llama::routed_by`].
#[derive(Clone, Copy, Debug)]
pub struct Generator<'a> {
    model: &'a Llama,
    routing: Option<&'a TextRouting<'a>>,
}

impl<'a> Generator<'a> {
    pub(super) fn of(model: &'a Llama) -> Self {
        Self {
            model,
            routing: None,
        }
    }

    pub(super) fn with_routing(self, routing: &'a TextRouting<'a>) -> Self {
        Self {
            routing: Some(routing),
            ..self
        }
    }

    /// As [`Llama::generate`].
    ///
    /// # Errors
    ///
    /// As [`Llama::generate`], and [`GenerateError::Routing`] for a routing that does not fit the model.
    pub fn generate(
        &self,
        tokenizer: &LlamaTokenizer,
        prompt: &str,
        config: &GenerateConfig,
        on_text: impl FnMut(&str),
    ) -> Result<Generated, GenerateError> {
        let special = !tokenizer.begins_with_bos(prompt);
        let mut ids = tokenizer.encode(prompt, special)?;
        // Some tokenizers end every text, and this one is to go on.
        let ended = ids.last().is_some_and(|id| tokenizer.eos().contains(id));
        if special && ended && !ids.ends_with(&tokenizer.encode(prompt, false)?) {
            ids.pop();
        }
        self.generate_from(tokenizer, &ids, config, on_text)
    }

    /// As [`Llama::generate_from`].
    ///
    /// # Errors
    ///
    /// As [`generate`](Self::generate).
    pub fn generate_from(
        &self,
        tokenizer: &LlamaTokenizer,
        prompt: &[u32],
        config: &GenerateConfig,
        mut on_text: impl FnMut(&str),
    ) -> Result<Generated, GenerateError> {
        let prompt = self.prompt(prompt)?;
        let eos: &[u32] = match (&config.eos_token_id, tokenizer.eos()) {
            (Some(ids), _) => ids,
            (None, []) => &self.model.config().eos_token_ids,
            (None, ids) => ids,
        };
        let mut text = String::new();
        let mut give = |piece: &str| {
            if !piece.is_empty() {
                text.push_str(piece);
                on_text(piece);
            }
        };
        let mut stream = TextStream::new(tokenizer, &config.stop_strings);
        let (ids, mut stopped_by) = self.tokens(&prompt, config, eos, |id| {
            let (piece, stopped) = stream.push(id)?;
            give(&piece);
            Ok(stopped)
        })?;
        if stopped_by != StoppedBy::StopString {
            let (piece, stopped) = stream.finish()?;
            give(&piece);
            if stopped {
                stopped_by = StoppedBy::StopString;
            }
        }
        Ok(Generated {
            text,
            ids,
            prompt_tokens: prompt.len(),
            stopped_by,
        })
    }

    /// As [`Llama::generate_ids`].
    ///
    /// # Errors
    ///
    /// As [`generate`](Self::generate), and [`GenerateError::Setting`] if there are stop strings.
    pub fn generate_ids(
        &self,
        prompt: &[u32],
        config: &GenerateConfig,
    ) -> Result<Vec<u32>, GenerateError> {
        if !config.stop_strings.is_empty() {
            return Err(GenerateError::Setting {
                setting: "stop_strings",
                found: format!("{:?}", config.stop_strings),
                expected: "empty where there is no tokenizer".to_string(),
            });
        }
        let prompt = self.prompt(prompt)?;
        let model = &self.model.config().eos_token_ids;
        let eos = config.eos_token_id.as_ref().unwrap_or(model);
        let (ids, _) = self.tokens(&prompt, config, eos, |_| Ok(false))?;
        Ok(ids)
    }

    /// The most tokens of a text: positions that virtual tokens leave.
    fn context(&self) -> usize {
        let positions = self.model.config().max_position_embeddings;
        positions.saturating_sub(self.model.virtual_tokens())
    }

    /// A prompt that the model can be given: BOS where it is empty.
    fn prompt<'p>(&self, ids: &'p [u32]) -> Result<Cow<'p, [u32]>, GenerateError> {
        let config = self.model.config();
        if ids.is_empty() {
            let bos = config.bos_token_id.ok_or(GenerateError::EmptyPrompt)?;
            return Ok(Cow::Owned(vec![bos]));
        }
        let (tokens, context) = (ids.len(), self.context());
        if tokens > context {
            return Err(GenerateError::PromptTooLong { tokens, context });
        }
        let vocab = config.vocab_size;
        match ids.iter().position(|&id| id as usize >= vocab) {
            None => Ok(Cow::Borrowed(ids)),
            Some(position) => Err(GenerateError::TokenId {
                position,
                id: ids[position],
                vocab,
            }),
        }
    }

    /// Refuses a task that an active adapter does not have, and none where it has several.
    fn check_task(&self, task: Option<usize>) -> Result<(), GenerateError> {
        for tasks in self.model.num_tasks() {
            let is_told = task.map_or(tasks == 1, |task| task < tasks);
            if !is_told {
                return Err(GenerateError::Setting {
                    setting: "task",
                    found: task.map_or("not given".to_string(), |task| task.to_string()),
                    expected: format!(
                        "below {tasks}: an active adapter has {tasks} tasks, counted from 0"
                    ),
                });
            }
        }
        Ok(())
    }

    /// The tokens behind `prompt`, and what ended them; `found` says of each whether it ends a stop
    /// string.
    fn tokens(
        &self,
        prompt: &[u32],
        config: &GenerateConfig,
        eos: &[u32],
        found: impl FnMut(u32) -> Result<bool, GenerateError>,
    ) -> Result<(Vec<u32>, StoppedBy), GenerateError> {
        config.check()?;
        self.check_task(config.task)?;
        self.check_composition()?;
        let valid;
        let model = if self.model.device().is_autodiff() {
            valid = self.model.valid();
            &valid
        } else {
            self.model
        };
        let device = model.device();
        let mut reader = Reader::new(model, self.routing);
        let context = match config.task {
            Some(task) => ForwardContext::new().with_tasks(TaskIds::new([task])),
            None => ForwardContext::new(),
        };
        let logits = |ids: &[u32]| {
            let shape = [1, ids.len()];
            let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device);
            let logits = reader.next_logits(ids, context.clone())?;
            let data = logits.into_data();
            Ok(data.iter::<f64>().collect::<Vec<f64>>())
        };
        let limits = Limits {
            config,
            eos,
            context: self.context(),
        };
        limits.run(prompt, logits, found)
    }

    /// Refuses several rows, weights that are needed and not there, and those that nobody needs.
    fn check_composition(&self) -> Result<(), GenerateError> {
        match (self.model.composition(), self.routing) {
            (Composition::PerRow(rows), _) if rows.len() != 1 => {
                Err(GenerateError::Rows { rows: rows.len() })
            }
            (Composition::PerRowStack(rows), _) if rows.len() != 1 => {
                Err(GenerateError::Rows { rows: rows.len() })
            }
            (Composition::Nested(tree), _) if tree.splits_tokens() => Err(GenerateError::Tokens),
            (Composition::Nested(tree), _) if tree.batch_rows().is_some_and(|rows| rows != 1) => {
                let rows = tree.batch_rows().unwrap_or(0);
                Err(GenerateError::Rows { rows })
            }
            (Composition::Routed(_), None) => Err(GenerateError::Routed),
            (Composition::Routed(_), Some(_)) if self.model.device().is_autodiff() => {
                let reason = "it is given for a model with autodiff: generate with the `valid()` of the model, and of \
                              what computes the weights";
                Err(GenerateError::routing(reason))
            }
            (Composition::Routed(_), Some(_)) | (_, None) => Ok(()),
            (_, Some(_)) => Err(GenerateError::routing(
                "the model's adapters are not composed by routing: `set_composition` with `Composition::Routed`",
            )),
        }
    }
}

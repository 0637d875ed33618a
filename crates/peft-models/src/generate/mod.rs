//! Text generation with a Llama.

mod config;
mod decode;
mod error;
mod file;
mod processors;
mod stream;

use std::borrow::Cow;

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::nn::{ForwardContext, TaskIds};
use peft_core::{Composition, PeftModule as _};

use self::decode::Limits;
use self::stream::TextStream;
use crate::{Llama, LlamaTokenizer};

pub use config::GenerateConfig;
pub use error::GenerateError;

/// What ended a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoppedBy {
    /// A token that ends texts ([`GenerateConfig::eos_token_id`]).
    Eos,
    /// One of [`GenerateConfig::stop_strings`].
    StopString,
    /// [`GenerateConfig::max_new_tokens`].
    MaxNewTokens,
    /// The end of the model's context: prompt, virtual tokens and generated tokens fill its
    /// `max_position_embeddings`.
    Context,
}

/// What [`Llama::generate`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generated {
    /// The text behind the prompt, without special tokens and without the stop string.
    pub text: String,
    /// All tokens behind the prompt, with the one that ended the generation.
    pub ids: Vec<u32>,
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why there is no more.
    pub stopped_by: StoppedBy,
}

impl Llama {
    /// Goes on with a text; `on_text` gets each piece of it as soon as it is known.
    ///
    /// Pieces are whole characters, and never a part of a stop string; together they are
    /// [`Generated::text`]. The tokenizer's special tokens are put in front of the prompt, unless
    /// the prompt begins with the text of its BOS token, as rendered chats of many models do. (To
    /// have none, encode the prompt and call [`generate_from`](Self::generate_from).)
    ///
    /// Active adapters take part. Texts are generated one at a time: where rows have adapters of their own
    /// ([`set_adapter_per_row`](peft_core::PeftModule::set_adapter_per_row)), there must be one row. A model on an autodiff device generates by `self.valid()`: no
    /// graph is built, and there is no dropout.
    ///
    /// ```no_run
    /// use burn::tensor::Device;
    /// use peft_models::{GenerateConfig, Llama, LlamaTokenizer, Message};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let tokenizer = LlamaTokenizer::load("SmolLM2-135M-Instruct")?;
    /// let model = Llama::load("SmolLM2-135M-Instruct", &Device::default())?;
    /// let prompt = tokenizer.chat(&[Message::user("Name three rivers.")])?;
    /// let config = GenerateConfig::default()
    ///     .with_max_new_tokens(200)
    ///     .with_temperature(0.6);
    /// let reply = model.generate(&tokenizer, &prompt, &config, |text| print!("{text}"))?;
    /// println!("\n{} tokens, {:?}", reply.ids.len(), reply.stopped_by);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`GenerateError::Setting`] for a configuration that is out of range, or without the
    /// [`task`](GenerateConfig::task) that an active adapter needs; [`GenerateError::Rows`]; an error about the
    /// prompt if it is empty (and the model has no BOS token), longer than the context, or has
    /// tokens beyond the model's vocabulary; [`GenerateError::NotFinite`] if the model computes NaN
    /// or infinity; [`GenerateError::Tokenizer`] if the tokenizer fails.
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

    /// As [`generate`](Self::generate), from the token ids of a prompt; none are added to them.
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
            (None, []) => &self.config().eos_token_ids,
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

    /// The token ids that follow those of a prompt, with the one that ends the text if there is
    /// one. There is no tokenizer, so [`GenerateConfig::stop_strings`] must be empty.
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
        let model = &self.config().eos_token_ids;
        let eos = config.eos_token_id.as_ref().unwrap_or(model);
        let (ids, _) = self.tokens(&prompt, config, eos, |_| Ok(false))?;
        Ok(ids)
    }

    /// The most tokens of a text: positions that virtual tokens leave.
    fn context(&self) -> usize {
        let positions = self.config().max_position_embeddings;
        positions.saturating_sub(self.virtual_tokens())
    }

    /// A prompt that the model can be given: BOS where it is empty.
    fn prompt<'a>(&self, ids: &'a [u32]) -> Result<Cow<'a, [u32]>, GenerateError> {
        let config = self.config();
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
        for tasks in self.num_tasks() {
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
        match self.composition() {
            Composition::PerRow(rows) if rows.len() != 1 => {
                return Err(GenerateError::Rows { rows: rows.len() });
            }
            Composition::Routed(_) => return Err(GenerateError::Routed),
            _ => {}
        }
        let valid;
        let model = if self.device().is_autodiff() {
            valid = self.valid();
            &valid
        } else {
            self
        };
        let device = model.device();
        let mut cache = model.cache();
        let context = match config.task {
            Some(task) => ForwardContext::new().with_tasks(TaskIds::new([task])),
            None => ForwardContext::new(),
        };
        let logits = |ids: &[u32]| {
            let shape = [1, ids.len()];
            let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device);
            let logits = model.next_logits_in(ids, context.clone(), &mut cache);
            let data = logits.into_data();
            data.iter::<f64>().collect::<Vec<f64>>()
        };
        let limits = Limits {
            config,
            eos,
            context: self.context(),
        };
        limits.run(prompt, logits, found)
    }
}

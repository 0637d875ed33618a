//! Writing a tokenizer's files, with all that they said when they were read.

use std::path::Path;

use peft_core::files::Files;
use serde_json::{Map, Value, json};
use tokenizers::{PaddingParams, TruncationParams};

use super::{LlamaTokenizer, failed};
use crate::{LoadError, checkpoint};

const TOKENIZER: &str = "tokenizer.json";
pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const GENERATION: &str = "generation_config.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";

/// Files that a folder may have besides; they are kept as they are.
pub(super) const OTHERS: [&str; 2] = ["special_tokens_map.json", "added_tokens.json"];

/// What a folder said of its tokenizer and is not used here, for [`LlamaTokenizer::save`].
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// `tokenizer_config.json`.
    pub(super) config: Option<Map<String, Value>>,
    /// `generation_config.json`.
    pub(super) generation: Option<Map<String, Value>>,
    /// Those of [`OTHERS`] that are there.
    pub(super) others: Vec<(&'static str, Value)>,
    /// Whether the chat template has a file of its own.
    pub(super) jinja: bool,
    /// Of `tokenizer.json`.
    pub(super) padding: Option<PaddingParams>,
    /// Of `tokenizer.json`.
    pub(super) truncation: Option<TruncationParams>,
    /// Whether the tokens that end texts are no longer those that were read.
    pub(super) new_ends: bool,
}

impl LlamaTokenizer {
    /// Writes the tokenizer's files into `dir`, for upstream's `AutoTokenizer` and `generate`: `tokenizer.json`,
    /// `tokenizer_config.json` and `generation_config.json`, and `chat_template.jinja`, `special_tokens_map.json`
    /// and `added_tokens.json` if there were such. They change together, and stand beside each other complete or
    /// as they were.
    ///
    /// All fields of the folder that the tokenizer was loaded from are kept (`pad_token`, `padding_side`,
    /// `model_max_length`, `temperature`, …). What [`with_chat`](Self::with_chat),
    /// [`with_chat_template`](Self::with_chat_template) and [`with_end_tokens`](Self::with_end_tokens) set takes
    /// the place of what was read.
    ///
    /// # Errors
    ///
    /// [`LoadError::Write`], [`LoadError::Tokenizer`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), LoadError> {
        let dir = dir.as_ref();
        let mut files = Files::new(dir).map_err(checkpoint::written)?;
        self.stage(&mut files)?;
        // A model's folder is known by its configuration, so that goes with every set.
        let config = checkpoint::place(dir, checkpoint::CONFIG);
        if config.exists() {
            let bytes = checkpoint::read_bounded(&config, u64::MAX - 1)?;
            files
                .stage(checkpoint::CONFIG, |file| file.write_all(&bytes))
                .map_err(checkpoint::written)?;
        }
        files.commit().map_err(checkpoint::written)?;
        self.remove_leftovers(dir)
    }

    /// Adds the files to a set; `tokenizer.json` is the last of them.
    pub(crate) fn stage(&self, files: &mut Files) -> Result<(), LoadError> {
        let mut inner = self.inner.clone();
        inner.with_padding(self.kept.padding.clone());
        inner
            .with_truncation(self.kept.truncation.clone())
            .map_err(|reason| failed(&self.path, reason))?;
        let text = inner
            .to_string(true)
            .map_err(|reason| failed(&self.path, reason))?;
        let mut stage = |name: &str, text: &str| {
            files
                .stage(name, |file| file.write_all(text.as_bytes()))
                .map_err(checkpoint::written)
        };
        stage(CONFIG, &pretty(&self.config_json()))?;
        stage(GENERATION, &pretty(&self.generation_json()))?;
        for (name, value) in &self.kept.others {
            stage(name, &pretty(value))?;
        }
        if let Some(template) = self.chat_template.as_ref().filter(|_| self.kept.jinja) {
            stage(TEMPLATE, template)?;
        }
        stage(TOKENIZER, &text)
    }

    /// Deletes files of another tokenizer that a reader would take for this one's.
    pub(crate) fn remove_leftovers(&self, dir: &Path) -> Result<(), LoadError> {
        let written = |name: &str| {
            name == TEMPLATE && self.kept.jinja && self.chat_template.is_some()
                || self.kept.others.iter().any(|(other, _)| *other == name)
        };
        let names = OTHERS.into_iter().chain([TEMPLATE]);
        names
            .filter(|name| !written(name))
            .try_for_each(|name| checkpoint::remove(&dir.join(name)))
    }

    pub(super) fn config_json(&self) -> Value {
        match &self.kept.config {
            Some(config) => Value::Object(config.clone()),
            None => json!({
                "bos_token": self.bos_token,
                "chat_template": self.chat_template.as_ref().filter(|_| !self.kept.jinja),
                "clean_up_tokenization_spaces": false,
                "eos_token": self.eos_token,
                "tokenizer_class": "PreTrainedTokenizerFast",
            }),
        }
    }

    fn generation_json(&self) -> Value {
        let mut json = Value::Object(self.kept.generation.clone().unwrap_or_default());
        if json["bos_token_id"].is_null() && self.bos.is_some() {
            json["bos_token_id"] = json!(self.bos);
        }
        let ends = json["eos_token_id"].is_null() && !self.eos.is_empty();
        if ends || self.kept.new_ends {
            json["eos_token_id"] = self.ends_json();
        }
        json
    }

    /// The tokens that end texts if they are not those that were read, for `config.json`.
    pub(crate) fn new_ends(&self) -> Option<Value> {
        self.kept.new_ends.then(|| self.ends_json())
    }

    fn ends_json(&self) -> Value {
        match self.eos.as_slice() {
            [one] => json!(one),
            many => json!(many),
        }
    }
}

fn pretty(json: &Value) -> String {
    serde_json::to_string_pretty(json).expect("plain data")
}

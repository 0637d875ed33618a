//! Reading a model folder.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{LlamaTokenizer, failed};
use crate::gguf::{self, Gguf};
use crate::llama::gguf_file;
use crate::{LlamaConfig, LoadError, checkpoint};

/// A value, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> From<OneOrMany<T>> for Vec<T> {
    fn from(values: OneOrMany<T>) -> Self {
        match values {
            OneOrMany::One(value) => vec![value],
            OneOrMany::Many(values) => values,
        }
    }
}

/// What `config.json` and `generation_config.json` say about tokens.
#[derive(Default, Deserialize)]
struct Ids {
    vocab_size: Option<usize>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany<u32>>,
}

/// What `tokenizer_config.json` says.
#[derive(Default, Deserialize)]
struct Texts {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    chat_template: Option<Templates>,
}

/// A token's text, alone or among its settings.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Settings { content: String },
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        match token {
            Token::Text(text) | Token::Settings { content: text } => text,
        }
    }
}

/// A chat template, or several with names.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl Templates {
    fn chosen(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(templates) => templates
                .into_iter()
                .find(|named| named.name == "default")
                .map(|named| named.template),
        }
    }
}

/// A JSON file that a folder need not have.
fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LoadError> {
    if path.exists() {
        checkpoint::read_json(path).map(Some)
    } else {
        Ok(None)
    }
}

/// A text file that a folder need not have.
fn read_text(path: &Path) -> Result<Option<String>, LoadError> {
    if !path.exists() {
        return Ok(None);
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) => Err(LoadError::Io {
            path: path.to_path_buf(),
            source,
        }),
    }
}

impl LlamaTokenizer {
    /// Reads a GGUF file's header, or a model folder in Hugging Face's layout.
    ///
    /// - `tokenizer.json`: the tokenizer;
    /// - `config.json`: `vocab_size`;
    /// - `bos_token_id` and `eos_token_id` of `generation_config.json` or, where it lacks them, of
    ///   `config.json`, or else the tokens named in `tokenizer_config.json`;
    /// - `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`; of several the one
    ///   called `default`.
    ///
    /// Only the first two files must be there. A folder with one GGUF file and no `config.json` means that
    /// file.
    ///
    /// # Errors
    ///
    /// [`LoadError::Io`], [`LoadError::Json`] and [`LoadError::Tokenizer`] for files that are
    /// missing or damaged, [`LoadError::Config`] without a `vocab_size`, and [`LoadError::TokenId`]
    /// for a token that the model has no embedding for; [`LoadError::Gguf`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let dir = path.as_ref();
        if let Some(file) = gguf_file(dir)? {
            return Self::load_gguf(&Gguf::open(file)?);
        }
        let config_path = dir.join("config.json");
        let config: Ids = checkpoint::read_json(&config_path)?;
        let Some(vocab_size) = config.vocab_size else {
            return Err(LoadError::Config {
                path: config_path,
                field: "vocab_size",
                found: "missing".to_string(),
                expected: "the number of embeddings".to_string(),
            });
        };
        let generation: Option<Ids> = read_optional(&dir.join("generation_config.json"))?;
        let generation = generation.unwrap_or_default();
        let texts: Option<Texts> = read_optional(&dir.join("tokenizer_config.json"))?;
        let named = texts.is_some();
        let texts = texts.unwrap_or_default();
        let chat_template = read_text(&dir.join("chat_template.jinja"))?
            .or_else(|| texts.chat_template.and_then(Templates::chosen));
        let bos_token = texts.bos_token.map(String::from);
        let eos_token = texts.eos_token.map(String::from);

        let path = dir.join("tokenizer.json");
        let inner = super::read(&path)?;
        let id = |token: &str| inner.token_to_id(token);
        let bos = generation.bos_token_id.or(config.bos_token_id);
        let bos = bos.or_else(|| bos_token.as_deref().and_then(id));
        let eos = [generation.eos_token_id, config.eos_token_id]
            .into_iter()
            .flatten()
            .map(Vec::<u32>::from)
            .find(|ids| !ids.is_empty())
            .unwrap_or_else(|| eos_token.as_deref().and_then(id).into_iter().collect());
        let mut tokenizer = Self::from_parts(inner, path, vocab_size, bos, eos, chat_template)?;
        // What the file leaves out, templates are not to see.
        if named {
            tokenizer.bos_token = bos_token;
            tokenizer.eos_token = eos_token;
        }
        Ok(tokenizer)
    }

    fn load_gguf(gguf: &Gguf) -> Result<Self, LoadError> {
        let path = gguf.path().to_path_buf();
        let config = LlamaConfig::from_json(&gguf::config_json(gguf)?, &path)?;
        let template = gguf.chat_template()?.map(str::to_string);
        let (bos, eos) = (config.bos_token_id, config.eos_token_ids);
        Self::from_parts(
            gguf::tokenizer(gguf)?,
            path,
            config.vocab_size,
            bos,
            eos,
            template,
        )
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` into `dir`, for upstream's
    /// `AutoTokenizer` and `generate`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Write`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), LoadError> {
        let dir = dir.as_ref();
        let write = |file: &str, text: String| {
            let path = dir.join(file);
            std::fs::write(&path, text).map_err(|source| LoadError::Write { path, source })
        };
        let text = self
            .inner
            .to_string(true)
            .map_err(|reason| failed(&self.path, reason))?;
        write("tokenizer.json", text)?;
        let config = json!({
            "bos_token": self.bos_token,
            "chat_template": self.chat_template,
            "clean_up_tokenization_spaces": false,
            "eos_token": self.eos_token,
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        let pretty = |json| serde_json::to_string_pretty(&json).expect("plain data");
        write("tokenizer_config.json", pretty(config))?;
        let eos = match self.eos.as_slice() {
            [one] => json!(one),
            many => json!(many),
        };
        let generation = json!({ "bos_token_id": self.bos, "eos_token_id": eos });
        write("generation_config.json", pretty(generation))
    }
}

//! Reading a model folder.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::LlamaTokenizer;
use super::save::{CONFIG, GENERATION, Kept, OTHERS, TEMPLATE};
use crate::gguf::{self, Gguf, gguf_file};
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

/// A text file that a folder need not have, of at most 1 MiB.
fn read_text(path: &Path) -> Result<Option<String>, LoadError> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = checkpoint::read_bounded(path, 1 << 20)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(source) => Err(LoadError::Io {
            path: path.to_path_buf(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, source),
        }),
    }
}

/// Some of a JSON object's fields.
fn fields<T: DeserializeOwned + Default>(
    path: &Path,
    object: Option<&Map<String, Value>>,
) -> Result<T, LoadError> {
    let Some(object) = object else {
        return Ok(T::default());
    };
    serde_json::from_value(Value::Object(object.clone())).map_err(|source| LoadError::Json {
        path: path.to_path_buf(),
        source,
    })
}

impl LlamaTokenizer {
    /// Reads a GGUF file's header, or a model folder in Hugging Face's layout.
    ///
    /// - `tokenizer.json`: the tokenizer;
    /// - `config.json`: `vocab_size`;
    /// - `bos_token_id` and `eos_token_id` of `generation_config.json` or, where it lacks them, of
    ///   `config.json`, or else the tokens named in `tokenizer_config.json`;
    /// - `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`; of several the one
    ///   called `default`;
    /// - `special_tokens_map.json` and `added_tokens.json`, to be written again.
    ///
    /// Only the first two files must be there. A folder with one GGUF file and no `config.json` means that
    /// file.
    ///
    /// # Errors
    ///
    /// [`LoadError::Io`], [`LoadError::Json`] and [`LoadError::Tokenizer`] for files that are
    /// missing or damaged, [`LoadError::Absent`] for a folder with a tokenizer in another form,
    /// [`LoadError::Config`] without a `vocab_size`, and [`LoadError::TokenId`] for a token that begins or ends
    /// texts and that the model has no embedding for; [`LoadError::Gguf`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let dir = path.as_ref();
        if let Some(file) = gguf_file(dir)? {
            return Self::load_gguf(&Gguf::open(file)?);
        }
        let config_path = checkpoint::place(dir, "config.json");
        let config: Ids = checkpoint::read_json(&config_path)?;
        let Some(vocab_size) = config.vocab_size else {
            return Err(LoadError::Config {
                path: config_path,
                field: "vocab_size",
                found: "missing".to_string(),
                expected: "the number of embeddings".to_string(),
            });
        };
        let generation_path = checkpoint::place(dir, GENERATION);
        let kept_generation = read_optional(&generation_path)?;
        let generation: Ids = fields(&generation_path, kept_generation.as_ref())?;
        let texts_path = checkpoint::place(dir, CONFIG);
        let kept_config = read_optional(&texts_path)?;
        let texts: Texts = fields(&texts_path, kept_config.as_ref())?;
        let named = kept_config.is_some();
        let jinja = read_text(&checkpoint::place(dir, TEMPLATE))?;
        let mut kept = Kept {
            config: kept_config,
            generation: kept_generation,
            jinja: jinja.is_some(),
            ..Kept::default()
        };
        for name in OTHERS {
            if let Some(value) = read_optional(&checkpoint::place(dir, name))? {
                kept.others.push((name, value));
            }
        }
        let chat_template = jinja.or_else(|| texts.chat_template.and_then(Templates::chosen));
        let bos_token = texts.bos_token.map(String::from);
        let eos_token = texts.eos_token.map(String::from);

        let path = checkpoint::place(dir, "tokenizer.json");
        checkpoint::advise(
            dir,
            &path,
            &["vocab.txt", "tokenizer.model", "spiece.model", "vocab.json"],
            "`AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` of Python's transformers writes it",
        )?;
        let inner = super::read(&path)?;
        kept.padding = inner.get_padding().cloned();
        kept.truncation = inner.get_truncation().cloned();
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
        tokenizer.kept = kept;
        Ok(tokenizer)
    }

    fn load_gguf(gguf: &Gguf) -> Result<Self, LoadError> {
        let path = gguf.path().to_path_buf();
        let json = gguf::config_json(gguf)?;
        let config = LlamaConfig::from_json(&json, &path)?;
        let template = gguf.chat_template()?.map(str::to_string);
        let (bos, eos) = (config.bos_token_id, config.eos_token_ids);
        let mut tokenizer = Self::from_parts(
            gguf::tokenizer(gguf)?,
            path,
            config.vocab_size,
            bos,
            eos,
            template,
        )?;
        if let Some(id) = json["pad_token_id"].as_u64() {
            let token = tokenizer.inner.id_to_token(id as u32);
            let generation = Map::from_iter([("pad_token_id".to_string(), id.into())]);
            tokenizer.kept.generation = Some(generation);
            let mut config = tokenizer.config_json();
            config["pad_token"] = token.into();
            tokenizer.kept.config = config.as_object().cloned();
        }
        Ok(tokenizer)
    }
}

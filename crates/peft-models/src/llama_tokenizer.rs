//! From texts and chats to a Llama's token ids, and back.

mod chat;
mod jinja;
mod load;
mod moment;
mod read;
mod save;
mod turns;
mod vocabulary;

use std::path::{Path, PathBuf};

use crate::LoadError;
use crate::panics::caught;

pub use chat::Message;
pub(crate) use load::OneOrMany;
pub use moment::Moment;
pub(crate) use read::read;
pub use turns::ChatTemplate;
pub(crate) use vocabulary::add_tokens;

use save::Kept;

/// The tokenizer of a model that generates text, checked against the model's vocabulary.
///
/// Padding and truncation settings of the file are overridden: there is neither.
///
/// ```no_run
/// use peft_models::{LlamaTokenizer, Message};
///
/// # fn main() -> Result<(), peft_models::LoadError> {
/// let tokenizer = LlamaTokenizer::load("SmolLM2-135M-Instruct")?;
/// let ids = tokenizer.encode("Once upon a time", true)?;
/// assert_eq!(tokenizer.decode(&ids, true)?, "Once upon a time");
///
/// let prompt = tokenizer.chat(&[
///     Message::system("Answer in one line."),
///     Message::user("What is a rank?"),
/// ])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LlamaTokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    chat_template: Option<String>,
    /// What chat templates call `bos_token`.
    bos_token: Option<String>,
    /// What chat templates call `eos_token`.
    eos_token: Option<String>,
    /// What else its folder says.
    kept: Kept,
}

impl LlamaTokenizer {
    /// From a tokenizer that was read or built elsewhere; `path` is what errors name.
    ///
    /// `bos` and `eos` are the ids of the tokens that begin and end texts; chat templates see the
    /// texts of `bos` and of the first of `eos`.
    ///
    /// # Errors
    ///
    /// [`LoadError::TokenId`] if `bos`, `eos` or a token that is put around texts is not below `vocab_size` (of
    /// other tokens, [`encode`](Self::encode) refuses the texts that hold them); [`LoadError::Tokenizer`] if the
    /// tokenizer fails on the empty text.
    pub fn from_parts(
        mut inner: tokenizers::Tokenizer,
        path: PathBuf,
        vocab_size: usize,
        bos: Option<u32>,
        eos: Vec<u32>,
        chat_template: Option<String>,
    ) -> Result<Self, LoadError> {
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|reason| failed(&path, reason))?;
        let named = |name: &str, id: u32| {
            let token = inner.id_to_token(id);
            (token.unwrap_or_else(|| name.to_string()), id)
        };
        // Post-processors have ids of their own, which need not be in the vocabulary.
        let around = caught(&path, || inner.encode_fast("", true))?;
        let around = around.map_err(|reason| failed(&path, reason))?;
        let around = around.get_ids().iter();
        let beyond = (bos.map(|id| named("bos_token_id", id)).into_iter())
            .chain(eos.iter().map(|&id| named("eos_token_id", id)))
            .chain(around.map(|&id| named("post_processor", id)))
            .filter(|(_, id)| *id as usize >= vocab_size)
            .min_by_key(|(_, id)| *id);
        if let Some((token, id)) = beyond {
            return Err(LoadError::TokenId {
                path,
                token,
                id,
                vocab: vocab_size,
            });
        }
        let bos_token = bos.and_then(|id| inner.id_to_token(id));
        let eos_token = eos.first().and_then(|&id| inner.id_to_token(id));
        Ok(Self {
            path,
            inner,
            vocab_size,
            bos,
            eos,
            chat_template,
            bos_token,
            eos_token,
            kept: Kept::default(),
        })
    }

    /// Token ids of a text. Special tokens that are written out in it become those tokens, as upstream has it:
    /// a user's message with `<|im_end|>` in it ends its turn. Take such marks out of texts that you do not trust.
    ///
    /// `add_special` adds what the tokenizer puts around texts, for most models a BOS token in
    /// front or nothing. Chats rendered by [`chat`](Self::chat) have theirs already.
    ///
    /// # Errors
    ///
    /// [`LoadError::TokenId`] if the text holds a token that the model has no embedding for, as tokenizers with
    /// added tokens can have; [`LoadError::Tokenizer`] if the tokenizer fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, LoadError> {
        let encoding = caught(&self.path, || self.inner.encode_fast(text, add_special))?;
        let encoding = encoding.map_err(|reason| failed(&self.path, reason))?;
        self.check_ids(encoding.get_ids())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Refuses tokens that the model has no embedding for.
    fn check_ids(&self, ids: &[u32]) -> Result<(), LoadError> {
        check_ids(&self.path, &self.inner, self.vocab_size, ids)
    }

    /// Text of token ids. Ids of the model that the tokenizer has no token for, as padded
    /// vocabularies have, give none; neither do special tokens where `skip_special`. Bytes that are
    /// no UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`LoadError::Setting`] for an id that is not below [`vocab_size`](Self::vocab_size), and
    /// [`LoadError::Tokenizer`] if the tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, LoadError> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(LoadError::Setting {
                setting: "ids",
                found: id.to_string(),
                expected: format!("below the model's `vocab_size`, {}", self.vocab_size),
            });
        }
        // Some decoders want at least one token.
        if ids.is_empty() {
            return Ok(String::new());
        }
        let text = caught(&self.path, || self.inner.decode(ids, skip_special))?;
        text.map_err(|reason| failed(&self.path, reason))
    }

    /// The prompt for the model's reply to `messages`: the chat template's text, up to where the
    /// reply begins. `generate` takes it as it is: a BOS that the template wrote is not put in front again.
    ///
    /// # Errors
    ///
    /// As [`apply_chat_template`](Self::apply_chat_template).
    pub fn chat(&self, messages: &[Message]) -> Result<String, LoadError> {
        self.apply_chat_template(messages, true)
    }

    /// Renders `messages` by the chat template, as upstream's method of this name does;
    /// `add_generation_prompt` adds the header of a reply.
    ///
    /// Templates have what upstream gives them: `messages`, `add_generation_prompt`, `bos_token`,
    /// `eos_token`, `raise_exception`, `strftime_now`, the filter `tojson`, and `tools` and `documents`, which are
    /// none. `generation` tags, which mark replies for training, do nothing.
    ///
    /// A message is put into the text as it is: special tokens that it spells out become special tokens when the
    /// text is encoded, as upstream has it. Take them out of messages that you do not trust.
    ///
    /// A template is a program. It is refused beyond 1 MiB, and stopped after ten million instructions or 16 MiB of
    /// text besides the messages. It may still build long texts that it does not write: render the templates of
    /// models that you trust.
    ///
    /// # Errors
    ///
    /// [`LoadError::Tokenizer`] if there is no template, if it is damaged, or if it refuses these
    /// messages.
    pub fn apply_chat_template(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, LoadError> {
        self.apply_chat_template_at(messages, add_generation_prompt, Moment::now())
    }

    /// [`apply_chat_template`](Self::apply_chat_template) at the moment `now`: templates that write the
    /// date write that one.
    ///
    /// # Errors
    ///
    /// As [`apply_chat_template`](Self::apply_chat_template).
    pub fn apply_chat_template_at(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: Moment,
    ) -> Result<String, LoadError> {
        let Some(template) = &self.chat_template else {
            return Err(LoadError::Tokenizer {
                path: self.path.clone(),
                reason: "there is no chat template, so the model was hardly trained on chats; \
                         write the prompt as text"
                    .to_string(),
            });
        };
        let special = [
            ("bos_token", self.bos_token.as_deref()),
            ("eos_token", self.eos_token.as_deref()),
        ];
        let rendered = caught(&self.path, || {
            chat::render(template, messages, add_generation_prompt, &special, now)
        })?;
        rendered.map_err(|error| LoadError::Tokenizer {
            path: self.path.clone(),
            reason: format!("the chat template failed: {error}"),
        })
    }

    /// The token that begins texts.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end texts: [`generate`](crate::Llama::generate) stops at them.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The token of an id, as the tokenizer's vocabulary has it; none where it has no such id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of embeddings of the model: all ids are below.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The chat template, in Jinja's language.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Whether a text has a BOS token written out in front.
    pub(crate) fn begins_with_bos(&self, text: &str) -> bool {
        let token = self.bos.and_then(|id| self.inner.id_to_token(id));
        token.is_some_and(|token| !token.is_empty() && text.starts_with(&token))
    }
}

/// Refuses tokens that a model of `vocab` embeddings lacks.
pub(crate) fn check_ids(
    path: &Path,
    inner: &tokenizers::Tokenizer,
    vocab: usize,
    ids: &[u32],
) -> Result<(), LoadError> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(&id) => Err(LoadError::TokenId {
            path: path.to_path_buf(),
            token: inner.id_to_token(id).unwrap_or_default(),
            id,
            vocab,
        }),
    }
}

fn failed(path: &Path, reason: tokenizers::Error) -> LoadError {
    LoadError::Tokenizer {
        path: path.to_path_buf(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests;

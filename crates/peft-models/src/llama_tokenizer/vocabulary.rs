//! Tokens that a tokenizer gets besides its own.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::LlamaTokenizer;
use crate::LoadError;
use crate::panics::caught;

/// Adds tokens to a tokenizer; returns their ids, and what was added, in their order.
///
/// # Errors
///
/// Of [`LlamaTokenizer::with_tokens`].
pub(crate) fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    path: &Path,
    tokens: &[&str],
    special: bool,
) -> Result<(Vec<u32>, Vec<AddedToken>), LoadError> {
    if tokens.iter().any(|token| token.is_empty()) {
        return Err(LoadError::Setting {
            setting: "tokens",
            found: format!("{tokens:?}"),
            expected: "texts: an empty one is found nowhere".to_string(),
        });
    }
    let added: Vec<AddedToken> = tokens
        .iter()
        .map(|token| AddedToken::from(*token, special))
        .collect();
    caught(path, || {
        if special {
            inner.add_special_tokens(&added)
        } else {
            inner.add_tokens(&added)
        }
    })?;
    let id_of = |token: &&str| {
        let id = inner.token_to_id(token);
        id.ok_or_else(|| LoadError::Tokenizer {
            path: path.to_path_buf(),
            reason: format!("it does not take the token `{token}`"),
        })
    };
    let ids = tokens.iter().map(id_of).collect::<Result<_, _>>()?;
    Ok((ids, added))
}

impl LlamaTokenizer {
    /// The tokenizer with more tokens, and their ids in the order of `tokens`; a token that is there already keeps its id.
    /// As upstream's `add_tokens`: a token is found in texts as it is written, before they are cut up.
    ///
    /// `special` tokens are left out of decoded texts where that is asked for.
    ///
    /// Ids follow those of the tokenizer. Where the model has more embeddings than the tokenizer has tokens, the first new
    /// ones need no new rows; otherwise [`vocab_size`](Self::vocab_size) grows, and so must the model:
    /// [`Llama::resize_token_embeddings`](crate::Llama::resize_token_embeddings).
    ///
    /// # Errors
    ///
    /// [`LoadError::Setting`] for an empty token; [`LoadError::Tokenizer`] if the tokenizer fails.
    pub fn with_tokens(
        &self,
        tokens: &[&str],
        special: bool,
    ) -> Result<(Self, Vec<u32>), LoadError> {
        let mut grown = self.clone();
        let (ids, added) = add_tokens(&mut grown.inner, &self.path, tokens, special)?;
        let needed = ids.iter().max().map_or(0, |id| *id as usize + 1);
        grown.vocab_size = grown.vocab_size.max(needed);
        for ((token, id), added) in tokens.iter().zip(&ids).zip(&added) {
            if self.inner.token_to_id(token) != Some(*id) {
                grown.keep(token, *id, added);
            }
        }
        Ok((grown, ids))
    }

    /// Adds a new token to the files that list added ones, where the folder had such.
    fn keep(&mut self, token: &str, id: u32, added: &AddedToken) {
        let listed = self.kept.config.as_mut();
        let listed = listed.and_then(|config| config.get_mut("added_tokens_decoder"));
        if let Some(Value::Object(listed)) = listed {
            let entry = json!({
                "content": added.content,
                "lstrip": added.lstrip,
                "normalized": added.normalized,
                "rstrip": added.rstrip,
                "single_word": added.single_word,
                "special": added.special,
            });
            listed.insert(id.to_string(), entry);
        }
        let mut others = self.kept.others.iter_mut();
        if let Some((_, Value::Object(listed))) =
            others.find(|(name, _)| *name == "added_tokens.json")
        {
            listed.insert(token.to_string(), id.into());
        }
    }
}

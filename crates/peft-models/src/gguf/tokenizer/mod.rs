//! The tokenizer in the header of a GGUF file.
//!
//! It is described as a `tokenizer.json` is, and built from that.

mod byte_level;
mod sentence_piece;

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::Gguf;
use crate::LoadError;
use crate::panics::caught;

/// Most tokens, and most merges, that are read. Published models have up to 300 000.
const MAX_ENTRIES: usize = 1 << 21;

/// GGUF's numbers of kinds of tokens.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The tokenizer of a file whose `tokenizer.ggml.model` is `gpt2` (byte-level BPE) or `llama`
/// (SentencePiece BPE with byte fallback).
///
/// Where the header asks for it (or, as in llama.cpp, where this kind of tokenizer does so by
/// default), a beginning-of-sequence or end-of-sequence token is added when special tokens are.
/// Control tokens are special; user-defined ones are found in the text, but are not special.
///
/// # Errors
///
/// [`LoadError::Gguf`] for another kind of tokenizer, or values that are missing or do not fit
/// together; [`LoadError::Tokenizer`] if the tokenizer cannot be built from them.
pub(crate) fn tokenizer(gguf: &Gguf) -> Result<Tokenizer, LoadError> {
    let pipeline = match gguf.need("tokenizer.ggml.model", Gguf::str)? {
        "gpt2" => byte_level::pipeline,
        "llama" => sentence_piece::pipeline,
        other => {
            return Err(gguf.bad(format!(
                "`tokenizer.ggml.model` is `{other}`; `gpt2` and `llama` are read"
            )));
        }
    };
    let vocabulary = Vocabulary::read(gguf)?;
    let mut file = pipeline(gguf, &vocabulary)?;
    file["version"] = json!("1.0");
    file["added_tokens"] = vocabulary.added_tokens();
    let built = caught(&gguf.path, || Tokenizer::from_bytes(file.to_string()))?;
    built.map_err(|reason| LoadError::Tokenizer {
        path: gguf.path.clone(),
        reason: reason.to_string(),
    })
}

/// The tokens; a token's id is its place.
struct Vocabulary<'a> {
    tokens: &'a [String],
    /// Kinds of the tokens; empty if the file does not give them.
    kinds: Vec<i64>,
    ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self, LoadError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = gguf.need(key, Gguf::strings)?;
        limited(gguf, key, tokens.len())?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.as_str(), id) {
                return Err(gguf.bad(format!(
                    "`{key}` has `{token}` twice, with the ids {first} and {id}"
                )));
            }
        }
        let key = "tokenizer.ggml.token_type";
        let kinds = gguf.ints(key)?.unwrap_or_default();
        if !kinds.is_empty() && kinds.len() != tokens.len() {
            return Err(gguf.bad(format!(
                "`{key}` has {} entries for {} tokens",
                kinds.len(),
                tokens.len()
            )));
        }
        Ok(Self { tokens, kinds, ids })
    }

    fn kind(&self, id: usize) -> i64 {
        self.kinds.get(id).copied().unwrap_or(NORMAL)
    }

    /// The token whose id is the value of `key`, if there is that key or a default.
    fn token(
        &self,
        gguf: &Gguf,
        key: &str,
        default: Option<u32>,
    ) -> Result<Option<(&'a str, u32)>, LoadError> {
        let Some(id) = gguf.u32(key)?.or(default) else {
            return Ok(None);
        };
        match self.tokens.get(id as usize) {
            Some(token) => Ok(Some((token.as_str(), id))),
            None => Err(gguf.bad(format!(
                "`{key}` is {id}, but there are {} tokens",
                self.tokens.len()
            ))),
        }
    }

    /// Tokens with their ids, as in `tokenizer.json`.
    fn to_json(&self) -> Value {
        let entry = |(id, token): (usize, &String)| (token.clone(), json!(id));
        Value::Object(self.tokens.iter().enumerate().map(entry).collect())
    }

    /// Tokens that are found in a text before it is split, as in `tokenizer.json`.
    fn added_tokens(&self) -> Value {
        let added = |(id, token): (usize, &String)| {
            let kind = self.kind(id);
            matches!(kind, CONTROL | USER_DEFINED).then(|| {
                json!({
                    "id": id,
                    "content": token,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": kind == CONTROL,
                })
            })
        };
        self.tokens.iter().enumerate().filter_map(added).collect()
    }
}

/// Ids of the tokens around a text where the header does not give them, and whether the first is
/// put there where it does not say. The last never is.
struct Ends {
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
}

/// The token `bos` or `eos` and its id, if texts get it; `add` is whether they do by default.
fn end<'a>(
    gguf: &Gguf,
    vocabulary: &Vocabulary<'a>,
    name: &str,
    add: bool,
    default: Option<u32>,
) -> Result<Option<(&'a str, u32)>, LoadError> {
    let flag = format!("tokenizer.ggml.add_{name}_token");
    if !gguf.bool(&flag)?.unwrap_or(add) {
        return Ok(None);
    }
    let key = format!("tokenizer.ggml.{name}_token_id");
    match vocabulary.token(gguf, &key, default)? {
        Some(token) => Ok(Some(token)),
        None => Err(gguf.bad(format!(
            "its tokenizer adds a token ({name}) to each text, but its header lacks `{key}`"
        ))),
    }
}

/// The post-processor that puts a token before the text, or after it.
fn template(gguf: &Gguf, vocabulary: &Vocabulary<'_>, defaults: &Ends) -> Result<Value, LoadError> {
    let bos = end(gguf, vocabulary, "bos", defaults.add_bos, defaults.bos)?;
    let eos = end(gguf, vocabulary, "eos", false, defaults.eos)?;
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let special = |token: Option<(&str, u32)>, type_id: u32| {
        token.map(|(token, _)| json!({ "SpecialToken": { "id": token, "type_id": type_id } }))
    };
    let sequence = |id: &str, type_id: u32| {
        let text = json!({ "Sequence": { "id": id, "type_id": type_id } });
        let parts = [special(bos, type_id), Some(text), special(eos, type_id)];
        parts.into_iter().flatten()
    };
    let tokens: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(token, id)| {
            let entry = json!({ "id": token, "ids": [id], "tokens": [token] });
            (token.to_string(), entry)
        })
        .collect();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": sequence("A", 0).collect::<Value>(),
        "pair": sequence("A", 0).chain(sequence("B", 1)).collect::<Value>(),
        "special_tokens": tokens,
    }))
}

/// That an array is of a size that a tokenizer can have.
fn limited(gguf: &Gguf, key: &str, entries: usize) -> Result<(), LoadError> {
    if entries > MAX_ENTRIES {
        return Err(gguf.bad(format!(
            "`{key}` has {entries} entries; at most {MAX_ENTRIES} are read"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

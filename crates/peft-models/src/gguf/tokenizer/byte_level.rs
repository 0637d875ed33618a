//! Byte-level BPE, `gpt2` in the header.
//!
//! The header names how a text is split into words (`tokenizer.ggml.pre`), but does not say what
//! that is: the patterns are those of the models that the names come from.

use serde_json::{Value, json};

use super::{Ends, Vocabulary, limited, template};
use crate::LoadError;
use crate::gguf::Gguf;

/// GPT-2's words.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Llama 3's words: up to three digits together.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Qwen 2's words: Llama 3's, but each digit alone.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Words of Mistral's Tekken: split where capitals follow small letters.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Names that are read.
const NAMES: &str = "`default`, `gpt-2`, `smollm`, `starcoder`, `codeshell`, `minerva-7b`, \
                     `llama-bpe`, `llama3`, `llama-v3`, `falcon3`, `smaug-bpe`, `qwen2`, \
                     `deepseek-r1-qwen` and `tekken`";

/// What belongs to a name.
struct Words {
    /// One after the other: each splits the pieces of those before it.
    steps: Vec<Value>,
    /// Whether texts are brought to Unicode's composed form (NFC).
    composed: bool,
    /// Whether a word that is a token is not built from merges.
    ignore_merges: bool,
    /// Whether texts begin with a special token where the header does not say.
    add_bos: bool,
}

/// `tokenizer.json`, up to what all tokenizers share.
pub(super) fn pipeline(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value, LoadError> {
    let key = "tokenizer.ggml.pre";
    let name = gguf.str(key)?.unwrap_or("default");
    let words = words(name)
        .ok_or_else(|| gguf.bad(format!("`{key}` is `{name}`; those that are read: {NAMES}")))?;
    let ends = Ends {
        bos: None,
        eos: None,
        add_bos: words.add_bos,
    };
    Ok(json!({
        "normalizer": words.composed.then(|| json!({ "type": "NFC" })),
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": words.steps },
        "post_processor": template(gguf, vocabulary, &ends)?,
        "decoder": bytes(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": words.ignore_merges,
            "vocab": vocabulary.to_json(),
            "merges": merges(gguf)?,
        },
    }))
}

fn words(name: &str) -> Option<Words> {
    let (steps, composed, ignore_merges, add_bos) = match name {
        "gpt-2" => (vec![bytes(true)], false, false, false),
        "smollm" | "starcoder" | "codeshell" | "minerva-7b" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            (vec![digits, bytes(true)], false, false, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => {
            (vec![split(LLAMA3), bytes(false)], false, true, true)
        }
        "smaug-bpe" => (vec![split(LLAMA3), bytes(false)], false, false, false),
        "qwen2" | "deepseek-r1-qwen" => (vec![split(QWEN2), bytes(false)], true, false, false),
        "tekken" => (vec![split(TEKKEN), bytes(false)], false, true, true),
        // What llama.cpp does where a file does not say.
        "default" => {
            let patterns = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];
            let steps = patterns.into_iter().map(split).chain([bytes(false)]);
            (steps.collect(), false, false, false)
        }
        _ => return None,
    };
    Some(Words {
        steps,
        composed,
        ignore_merges,
        add_bos,
    })
}

/// Splits at a pattern: what matches is a piece, and what lies between.
fn split(pattern: &str) -> Value {
    json!({
        "type": "Split",
        "pattern": { "Regex": pattern },
        "behavior": "Isolated",
        "invert": false,
    })
}

/// Bytes as visible characters, after a split into GPT-2's words if `split_words`.
fn bytes(split_words: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": split_words,
    })
}

/// Pairs of tokens that become one, the first ones first.
fn merges(gguf: &Gguf) -> Result<Value, LoadError> {
    let key = "tokenizer.ggml.merges";
    let merges = gguf.need(key, Gguf::strings)?;
    limited(gguf, key, merges.len())?;
    merges
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok(json!([left, right])),
            None => Err(gguf.bad(format!(
                "`{key}` has `{merge}`, which is not two tokens with a space between them"
            ))),
        })
        .collect()
}

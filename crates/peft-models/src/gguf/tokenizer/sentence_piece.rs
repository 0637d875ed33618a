//! SentencePiece BPE with byte fallback, `llama` in the header.
//!
//! SentencePiece joins the two neighbours that make the token of the highest score. The pairs that
//! can be joined, best first, are the merges of a BPE: what Hugging Face's converter of Llama's
//! tokenizer makes of it.

use serde_json::{Value, json};

use super::{Ends, MAX_ENTRIES, NORMAL, Vocabulary, template};
use crate::LoadError;
use crate::gguf::Gguf;

/// What SentencePiece writes for a space.
const SPACE: &str = "▁";

/// Bytes of the longest token that is made by merges. The work for one grows with its square.
const LONGEST: usize = 256;

/// Ids in Llama's own tokenizer, where the header does not give others.
const UNKNOWN: u32 = 0;
const ENDS: Ends = Ends {
    bos: Some(1),
    eos: Some(2),
    add_bos: true,
};

/// `tokenizer.json`, up to what all tokenizers share.
pub(super) fn pipeline(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value, LoadError> {
    let key = "tokenizer.ggml.unknown_token_id";
    let unknown = vocabulary.token(gguf, key, Some(UNKNOWN))?;
    let prefix = gguf
        .bool("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);

    let mut normalizers = vec![replace(" ", SPACE)];
    let mut decoders = vec![
        replace(SPACE, " "),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "post_processor": template(gguf, vocabulary, &ENDS)?,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown.map(|(token, _)| token),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.to_json(),
            "merges": merges(gguf, vocabulary)?,
        },
    }))
}

fn replace(from: &str, to: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": from }, "content": to })
}

/// Two tokens that can be joined.
struct Merge<'a> {
    left: &'a str,
    right: &'a str,
    /// Ids of both.
    ids: (usize, usize),
    /// Score of what they become.
    score: f32,
}

/// Pairs of tokens that become one, the best ones first.
fn merges(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value, LoadError> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf.need(key, Gguf::floats)?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(gguf.bad(format!(
            "`{key}` has {} entries for {} tokens",
            scores.len(),
            vocabulary.tokens.len()
        )));
    }
    // Control tokens and bytes are neither made by merges nor parts of them.
    let part = |text: &str| {
        let id = vocabulary.ids.get(text).copied()?;
        (vocabulary.kind(id) == NORMAL).then_some(id)
    };
    let mut merges = Vec::new();
    for (id, (token, score)) in vocabulary.tokens.iter().zip(scores).enumerate() {
        if vocabulary.kind(id) != NORMAL {
            continue;
        }
        if token.len() > LONGEST {
            return Err(gguf.bad(format!(
                "token {id} has {} bytes; at most {LONGEST} are read",
                token.len()
            )));
        }
        for (middle, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(middle);
            if let (Some(left_id), Some(right_id)) = (part(left), part(right)) {
                let ids = (left_id, right_id);
                merges.push(Merge {
                    left,
                    right,
                    ids,
                    score,
                });
            }
        }
        if merges.len() > MAX_ENTRIES {
            return Err(gguf.bad(format!(
                "its tokens can be made by more than {MAX_ENTRIES} merges"
            )));
        }
    }
    merges.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.ids.cmp(&b.ids)));
    Ok(merges
        .into_iter()
        .map(|merge| json!([merge.left, merge.right]))
        .collect())
}

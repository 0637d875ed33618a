//! From texts to token ids.

use std::path::{Path, PathBuf};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use tokenizers::TruncationDirection;

use crate::llama_tokenizer::{add_tokens, check_ids};
use crate::panics::caught;
use crate::{BertConfig, LoadError, checkpoint};

/// The tokenizer of a model folder: `tokenizer.json`, checked against `config.json`.
///
/// Padding and truncation settings in the file are overridden: what is asked for at
/// [`encode_batch`](Self::encode_batch) holds.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    /// Tokens that the template adds to a text, as in `[CLS] … [SEP]`.
    special: usize,
    pad: u32,
    positions: usize,
    /// Number of embeddings of the model.
    vocab_size: usize,
}

/// Texts of one batch as token ids, each row filled up to the longest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batch {
    /// Token ids, row after row: `rows * length` of them.
    pub ids: Vec<u32>,
    /// True where a token only fills up its row; as long as `ids`.
    pub padding: Vec<bool>,
    /// Number of texts.
    pub rows: usize,
    /// Tokens of the longest text.
    pub length: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `dir`, and from its `config.json` the number of embeddings and the
    /// padding token.
    ///
    /// # Errors
    ///
    /// [`LoadError::Tokenizer`] for a damaged file, [`LoadError::Absent`] for a folder with a tokenizer in another
    /// form, [`LoadError::TokenId`] for a tokenizer that puts tokens around texts that the model has no embedding
    /// for (of other tokens, [`encode`](Self::encode) refuses the texts that hold them), and what
    /// [`BertConfig::load`] reports.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let config = BertConfig::load(&dir)?;
        let path = dir.as_ref().join("tokenizer.json");
        checkpoint::advise(
            dir.as_ref(),
            &path,
            &["vocab.txt", "tokenizer.model", "spiece.model", "vocab.json"],
            "`AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` of Python's transformers writes it",
        )?;
        let bad = |reason: tokenizers::Error| LoadError::Tokenizer {
            path: path.clone(),
            reason: reason.to_string(),
        };
        let mut inner = crate::llama_tokenizer::read(&path)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(bad)?;
        // The crate panics on some damaged files at the first text.
        // Post-processors have ids of their own, which need not be in the vocabulary.
        let around = caught(&path, || inner.encode_fast("", true))?.map_err(bad)?;
        let special = around.len();
        check_ids(&path, &inner, config.vocab_size, around.get_ids())?;
        let pad = config.pad_token_id.unwrap_or(0);
        if pad as usize >= config.vocab_size {
            return Err(LoadError::Config {
                path: dir.as_ref().join("config.json"),
                field: "pad_token_id",
                found: pad.to_string(),
                expected: format!("below the `vocab_size`, {}", config.vocab_size),
            });
        }
        Ok(Self {
            path,
            inner,
            special,
            pad,
            positions: config.max_position_embeddings,
            vocab_size: config.vocab_size,
        })
    }

    /// Token ids of each text, special tokens included, at most `max_len` each: the end of longer
    /// texts is cut off, never their special tokens.
    ///
    /// # Errors
    ///
    /// [`LoadError::Setting`] if `max_len` leaves no room for text between the special tokens, or
    /// is more than the model has positions for; [`LoadError::TokenId`] if a text holds a token that the model
    /// has no embedding for; [`LoadError::Tokenizer`] if the tokenizer fails.
    pub fn encode(&self, texts: &[&str], max_len: usize) -> Result<Vec<Vec<u32>>, LoadError> {
        if !(self.special + 1..=self.positions).contains(&max_len) {
            return Err(LoadError::Setting {
                setting: "max_len",
                found: max_len.to_string(),
                expected: format!("from {} to {}", self.special + 1, self.positions),
            });
        }
        let bad = |reason: tokenizers::Error| LoadError::Tokenizer {
            path: self.path.clone(),
            reason: reason.to_string(),
        };
        let encodings = caught(&self.path, || {
            self.inner.encode_batch_fast(texts.to_vec(), false)
        })?;
        encodings
            .map_err(bad)?
            .into_iter()
            .map(|mut encoding| {
                let whole = caught(&self.path, || {
                    encoding.truncate(max_len - self.special, 0, TruncationDirection::Right);
                    self.inner.post_process(encoding, None, true)
                })?;
                let whole = whole.map_err(bad)?;
                check_ids(&self.path, &self.inner, self.vocab_size, whole.get_ids())?;
                Ok(whole.get_ids().to_vec())
            })
            .collect()
    }

    /// The tokenizer with more tokens, and their ids in the order of `tokens`; a token that is there already keeps its id. A
    /// token is found in texts as it is written, before they are cut up.
    ///
    /// Ids follow those of the tokenizer. Where the model has more embeddings than the tokenizer has tokens, the first new
    /// ones need no new rows; otherwise [`vocab_size`](Self::vocab_size) grows, and so must the model:
    /// [`Bert::resize_token_embeddings`](crate::Bert::resize_token_embeddings).
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
        let (ids, _) = add_tokens(&mut grown.inner, &self.path, tokens, special)?;
        let needed = ids.iter().max().map_or(0, |id| *id as usize + 1);
        grown.vocab_size = grown.vocab_size.max(needed);
        Ok((grown, ids))
    }

    /// The token of an id, as the tokenizer's vocabulary has it; none where it has no such id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of embeddings of the model: all ids are below.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Rows of token ids, as [`encode`](Self::encode) makes them, filled up to the longest.
    ///
    /// For training: texts are encoded once, and batches of them made every epoch.
    pub fn batch(&self, rows: &[impl AsRef<[u32]>]) -> Batch {
        let length = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
        let mut batch = Batch {
            ids: Vec::with_capacity(rows.len() * length),
            padding: Vec::with_capacity(rows.len() * length),
            rows: rows.len(),
            length,
        };
        for (row, end) in rows.iter().zip((1..).map(|row| row * length)) {
            let row = row.as_ref();
            batch.ids.extend_from_slice(row);
            batch.ids.resize(end, self.pad);
            batch.padding.resize(end - length + row.len(), false);
            batch.padding.resize(end, true);
        }
        batch
    }

    /// [`encode`](Self::encode) and [`batch`](Self::batch) in one.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_batch(&self, texts: &[&str], max_len: usize) -> Result<Batch, LoadError> {
        Ok(self.batch(&self.encode(texts, max_len)?))
    }
}

impl Batch {
    /// The ids `[rows, length]` and the padding `[rows, length]` on a device. There is no padding
    /// where all texts are of one length, which saves the model its mask.
    pub fn to_device(&self, device: &Device) -> (Tensor<2, Int>, Option<Tensor<2, Bool>>) {
        let shape = [self.rows, self.length];
        let ids: Vec<i64> = self.ids.iter().map(|&id| i64::from(id)).collect();
        let ids = Tensor::from_data(TensorData::new(ids, shape), device);
        let padding = self
            .padding
            .contains(&true)
            .then(|| Tensor::from_data(TensorData::new(self.padding.clone(), shape), device));
        (ids, padding)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_id_has_a_token_or_none() {
        let tokenizer = with_section("added_tokens", json!([])).1.unwrap();
        let tokens = [0, 1, 2].map(|id| tokenizer.id_to_token(id));
        assert_eq!(tokens, [Some("a".into()), Some("b".into()), None]);
    }

    /// A tokenizer with one section changed, as it is read; the folder that it is in.
    fn with_section(
        section: &str,
        part: Value,
    ) -> (tempfile::TempDir, Result<Tokenizer, LoadError>) {
        let dir = tempfile::tempdir().unwrap();
        let config =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert/base/config.json");
        std::fs::copy(config, dir.path().join("config.json")).unwrap();
        let mut file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": { "a": 0, "b": 1 }, "unk_token": "a" }
        });
        file[section] = part;
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        let tokenizer = Tokenizer::load(dir.path());
        (dir, tokenizer)
    }

    /// What is said of a tokenizer with one section changed, while it is read or of a text.
    fn refusal(section: &str, part: Value) -> String {
        let (_dir, tokenizer) = with_section(section, part);
        let ids = tokenizer.and_then(|tokenizer| tokenizer.encode(&["a a"], 8));
        ids.unwrap_err().to_string()
    }

    #[test]
    fn what_the_tokenizers_crate_panics_on_is_an_error() {
        let template = |tokens: Value| {
            json!({ "type": "TemplateProcessing", "pair": [], "special_tokens": tokens,
                    "single": [{ "SpecialToken": { "id": "a", "type_id": 0 } }] })
        };
        let beyond = json!({ "a": { "id": "a", "ids": [400], "tokens": ["a"] } });
        for (section, part, says) in [
            (
                "pre_tokenizer",
                json!({ "type": "FixedLength", "length": 0 }),
                "chunk size",
            ),
            ("post_processor", template(json!({})), "tokenizer.json"),
            ("post_processor", template(beyond), "id 400"),
        ] {
            let said = refusal(section, part);
            assert!(
                said.contains(says) && said.contains("tokenizer.json"),
                "{said}"
            );
        }
    }

    #[test]
    fn texts_with_a_token_that_the_model_lacks_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert/base/config.json");
        let vocab = BertConfig::load(config.parent().unwrap())
            .unwrap()
            .vocab_size;
        std::fs::copy(config, dir.path().join("config.json")).unwrap();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null,
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": { "a": 0, "new": vocab }, "unk_token": "a" }
        });
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.encode(&["a b"], 8).unwrap(), [[0, 0]]);
        let error = tokenizer
            .encode(&["a", "a new"], 8)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`new`"), "{error}");
    }
}

//! From texts to token ids.

use std::path::{Path, PathBuf};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use tokenizers::TruncationDirection;

use crate::{BertConfig, LoadError};

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
}

/// Texts of one batch as token ids, each row filled up to the longest.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// [`LoadError::Tokenizer`] for a damaged file, [`LoadError::TokenId`] for a tokenizer that
    /// knows tokens the model has no embedding for, and what [`BertConfig::load`] reports.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let config = BertConfig::load(&dir)?;
        let path = dir.as_ref().join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| LoadError::Io {
            path: path.clone(),
            source,
        })?;
        let bad = |reason: tokenizers::Error| LoadError::Tokenizer {
            path: path.clone(),
            reason: reason.to_string(),
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(bad)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(bad)?;
        let beyond = inner
            .get_vocab(true)
            .into_iter()
            .filter(|(_, id)| *id as usize >= config.vocab_size)
            .min_by_key(|(_, id)| *id);
        if let Some((token, id)) = beyond {
            return Err(LoadError::TokenId {
                path,
                token,
                id,
                vocab: config.vocab_size,
            });
        }
        let special = inner.encode_fast("", true).map_err(bad)?.len();
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
        })
    }

    /// Token ids of each text, special tokens included, at most `max_len` each: the end of longer
    /// texts is cut off, never their special tokens.
    ///
    /// # Errors
    ///
    /// [`LoadError::Setting`] if `max_len` leaves no room for text between the special tokens, or
    /// is more than the model has positions for; [`LoadError::Tokenizer`] if the tokenizer fails.
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
        let encodings = self
            .inner
            .encode_batch_fast(texts.to_vec(), false)
            .map_err(bad)?;
        encodings
            .into_iter()
            .map(|mut encoding| {
                encoding.truncate(max_len - self.special, 0, TruncationDirection::Right);
                let whole = self.inner.post_process(encoding, None, true).map_err(bad)?;
                Ok(whole.get_ids().to_vec())
            })
            .collect()
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

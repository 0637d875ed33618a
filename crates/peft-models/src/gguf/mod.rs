//! GGUF files: a model's configuration, its tokenizer and its weights in one file.
//!
//! The format is llama.cpp's, versions 2 and 3 in little endian. As with safetensors nothing is
//! mapped into memory: [`Gguf::open`] reads and checks the header, [`Gguf::read`] streams one
//! tensor and dequantizes it to `f32`.

mod config;
mod file;
mod header;
mod metadata;
mod names;
mod quants;
mod tokenizer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::LoadError;

pub(crate) use config::config_json;
pub(crate) use file::gguf_file;
pub(crate) use names::{harmless, hugging_face_name, unpermute};
pub(crate) use tokenizer::tokenizer;

/// Bytes read at a time, at most; a chunk is of whole blocks.
const CHUNK: usize = 1 << 16;

/// An opened GGUF file: the header is read and checked, the values are not read yet.
///
/// Tensors are known by llama.cpp's names (`blk.0.attn_q.weight`). Types that are read: F32, F16,
/// BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL and IQ4_XS.
pub struct Gguf {
    path: PathBuf,
    file: Mutex<File>,
    metadata: BTreeMap<String, metadata::Value>,
    tensors: BTreeMap<String, header::Info>,
}

impl Gguf {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    ///
    /// [`LoadError::Io`] if the file cannot be read, [`LoadError::Gguf`] for a file that is no
    /// GGUF file, is cut off, or has a tensor of a type that is not read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(|source| LoadError::Io {
            path: path.clone(),
            source,
        })?;
        let (metadata, tensors) = header::read(&file, &path)?;
        Ok(Self {
            path,
            file: Mutex::new(file),
            metadata,
            tensors,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor as PyTorch gives it, rows before columns: GGUF's dimensions in reverse.
    /// None if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|info| info.shape.as_slice())
    }

    /// llama.cpp's name of the type that a tensor is stored in, as `Q4_K`. None if there is no
    /// such tensor.
    pub fn tensor_type(&self, name: &str) -> Option<&'static str> {
        self.tensors.get(name).map(|info| info.encoding.name)
    }

    /// Values of a tensor in row-major order of its [`shape`](Self::shape), all finite.
    ///
    /// They are those of llama.cpp's reference dequantizers, computed in `f32` in the same order.
    ///
    /// # Errors
    ///
    /// [`LoadError::Gguf`] if there is no such tensor, [`LoadError::Io`] if the file cannot be
    /// read, [`LoadError::NotFinite`] for a NaN or an infinity.
    pub fn read(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| self.bad(format!("it has no tensor `{name}`")))?;
        let io = |source| LoadError::Io {
            path: self.path.clone(),
            source,
        };
        let encoding = info.encoding;
        let mut values = Vec::with_capacity(info.bytes / encoding.bytes * encoding.values);
        let chunk = CHUNK / encoding.bytes * encoding.bytes;
        let mut buffer = vec![0; chunk.min(info.bytes)];
        let mut left = info.bytes;
        // A panic elsewhere leaves no more than another position in the file.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(info.offset)).map_err(io)?;
        while left > 0 {
            let blocks = &mut buffer[..chunk.min(left)];
            file.read_exact(blocks).map_err(io)?;
            (encoding.decode)(blocks, &mut values);
            left -= blocks.len();
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(LoadError::NotFinite {
                path: self.path.clone(),
                tensor: name.to_string(),
                index,
                value: values[index],
            }),
        }
    }

    /// The Jinja template that makes one text of a chat, if the file has one. It is not run here.
    ///
    /// # Errors
    ///
    /// [`LoadError::Gguf`] if `tokenizer.chat_template` is not text.
    pub fn chat_template(&self) -> Result<Option<&str>, LoadError> {
        self.str("tokenizer.chat_template")
    }

    /// An error about this file.
    fn bad(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Gguf {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path)
            .field("metadata", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::Gguf;
    use std::path::{Path, PathBuf};

    /// A file of `tests/golden/gguf`.
    pub(super) fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden/gguf")
            .join(name)
    }

    /// The published SmolLM2-135M-Instruct, if it was fetched.
    #[track_caller]
    pub(super) fn smollm2() -> Option<Gguf> {
        let file = "SmolLM2-135M-Instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
        peft_testing::fetched(file).map(|path| Gguf::open(path).unwrap())
    }
}

//! What can be wrong with a model folder.

use std::path::PathBuf;

/// Why a model, a tokenizer or a head could not be made.
///
/// Every message says which file, which field or tensor, what was found and what would be right.
/// Nothing is built in part: on an error there is no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be opened or read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A folder holds what is needed in a form that is not read.
    #[error("there is no {path}, but {found}, which is not read: {advice}")]
    Absent {
        /// The file that is missing.
        path: PathBuf,
        /// Names of the files that are there in its place.
        found: String,
        /// How to get the file from them.
        advice: &'static str,
    },
    /// A JSON file is damaged, or lacks a field that has no default.
    #[error("cannot use {path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A field of the model's configuration has a value that is not supported.
    #[error("{path}: `{field}` is {found}, but must be {expected}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Name of the field in `config.json`.
        field: &'static str,
        /// The value found.
        found: String,
        /// What is supported.
        expected: String,
    },
    /// The header of a safetensors file cannot be used.
    #[error("{path} is not a usable safetensors file: {reason}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A safetensors file is shorter (a broken download) or longer than its header says.
    #[error("{path} has {found} bytes, but its header describes {expected}: fetch it again")]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes that header and tensors need.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// Tensors that the configured model needs are not in the checkpoint.
    #[error("{path} lacks {count} of the tensors that the configured model needs: {names}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Their names, the first few.
        names: String,
    },
    /// The checkpoint holds tensors that the configured model has no place for.
    #[error("{path} holds {count} tensors that the configured model has no place for: {names}")]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Their names, the first few.
        names: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error(
        "{path}: tensor `{tensor}` has shape {found:?}, but `config.json` asks for {expected:?}"
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Name of the tensor in the file.
        tensor: String,
        /// Shape that follows from the configuration, as upstream lays it out.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a number format that is not read.
    #[error("{path}: tensor `{tensor}` is stored as {found}; F32, F16 and BF16 are read")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// Name of the tensor in the file.
        tensor: String,
        /// The format found.
        found: String,
    },
    /// A 4-bit quantized tensor whose parts do not fit together.
    #[error("{path}: quantized tensor `{tensor}`: {reason}")]
    Quantized {
        /// The file.
        path: PathBuf,
        /// Name of the tensor without the `.q4` of its codes.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor holds a NaN or an infinity.
    #[error(
        "{path}: tensor `{tensor}` holds {value} at element {index}; all weights must be finite"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Name of the tensor in the file.
        tensor: String,
        /// Position in the flattened tensor, as stored.
        index: usize,
        /// The value found.
        value: f32,
    },
    /// The tokenizer file is damaged, or the tokenizer failed on a text.
    #[error("{path}: {reason}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizer says.
        reason: String,
    },
    /// The tokenizer has a token that the model has no embedding for.
    #[error("{path}: token `{token}` has id {id}, but the model's `vocab_size` is {vocab}")]
    TokenId {
        /// The file.
        path: PathBuf,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Number of embeddings of the model.
        vocab: usize,
    },
    /// A setting of a new head or of a batch is out of range.
    #[error("`{setting}` is {found}, but must be {expected}")]
    Setting {
        /// Name of the argument.
        setting: &'static str,
        /// The value given.
        found: String,
        /// What is possible.
        expected: String,
    },
    /// A GGUF file is damaged, or holds what is not read.
    #[error("{path} is not a usable GGUF file: {reason}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A weight cannot be stored as was asked.
    #[error(transparent)]
    Packing(#[from] peft_core::Error),
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
}

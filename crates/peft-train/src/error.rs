//! The error of this crate. Its texts say what was wrong, where, and what would be right.

use std::path::{Path, PathBuf};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a training run cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting holds a value that cannot work.
    #[error("`{field}` is {found}, but must be {expected}")]
    Config {
        /// Field of [`TrainConfig`](crate::TrainConfig), or the method of [`Trainer`](crate::Trainer) that
        /// takes the value.
        field: &'static str,
        /// The value found.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A line of a data file is not what it should be.
    #[error("{path}, line {line}: {reason}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A data file as a whole is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A conversation that cannot be written out.
    #[error("conversation, record {number} of the data: {reason}")]
    Chat {
        /// The record, counted from 1 over all files.
        number: usize,
        /// Why not, and what would do.
        reason: String,
    },
    /// A record without a task, where others have one.
    #[error(
        "record {number} of the data has no task, and others have: give each record its task (`task`, a number from 0), \
         or none"
    )]
    Task {
        /// The record, counted from 1 over all files.
        number: usize,
    },
    /// The data do not say the tasks that the model's adapters have.
    #[error(
        "a row of the {what} data has {found}, but an active adapter has {tasks} tasks: give each record its task \
         (`task`), from 0 and below {tasks}"
    )]
    Tasks {
        /// `training` or `held-out`.
        what: &'static str,
        /// The row's task.
        found: String,
        /// Number of tasks.
        tasks: usize,
    },
    /// A set of data without a token to predict.
    #[error("the {what} data hold no token to predict; give a text of two tokens at least")]
    NoTargets {
        /// `training`, `held-out` or `given`.
        what: &'static str,
    },
    /// No parameter of the model would learn.
    #[error(
        "nothing of the model is set to be trained: attach an adapter first, and build the model on `device.autodiff()`"
    )]
    NothingToTrain,
    /// What would learn belongs to adapters that take no part in the forward pass.
    #[error(
        "of the adapters {adapters:?}, which would be trained, none is active: make one active with `activate`"
    )]
    NotActive {
        /// Names of the attached adapters.
        adapters: Vec<String>,
    },
    /// A row of the data has more tokens than the model has positions for.
    #[error(
        "a row of the {what} data has {tokens} tokens, but the model has positions for {positions}: make the \
         data with a `max_length` of {positions} at most"
    )]
    TooLong {
        /// `training` or `held-out`.
        what: &'static str,
        /// Tokens of the longest row.
        tokens: usize,
        /// Positions of the model, without those of virtual tokens.
        positions: usize,
    },
    /// The data hold a token that the model does not know.
    #[error(
        "the {what} data hold token {token}, but the model knows {vocabulary} tokens, from 0 on: make the data \
         with the model's own tokenizer"
    )]
    UnknownToken {
        /// `training` or `held-out`.
        what: &'static str,
        /// The largest token id.
        token: u32,
        /// Number of tokens that the model knows.
        vocabulary: usize,
    },
    /// The loss or its gradient is no number any more.
    #[error(
        "step {step}: the {what} is {value}. Try a lower `learning_rate`, a longer `warmup` or a lower \
         `max_grad_norm`; the adapter of an earlier checkpoint can be loaded and trained on with these"
    )]
    Diverged {
        /// The step, counted from 1.
        step: usize,
        /// `loss`, `gradient norm` or `held-out loss`.
        what: &'static str,
        /// NaN or an infinity.
        value: f64,
    },
    /// A run cannot go on from a checkpoint.
    #[error("cannot go on from {path}: {reason}", path = path.display())]
    Resume {
        /// The checkpoint's folder or file.
        path: PathBuf,
        /// What differs and what would be right.
        reason: String,
    },
    /// The output folder holds a checkpoint that is none of this run's.
    #[error(
        "{path} is a checkpoint of another run, or of a later step of this one: go on from it, or give an \
         empty folder",
        path = path.display()
    )]
    Occupied {
        /// The checkpoint.
        path: PathBuf,
    },
    /// Another run writes into the output folder.
    #[error(
        "another run writes its checkpoints into {path}: wait for its end, or give another folder",
        path = path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A tokenizer cannot be used.
    #[error(transparent)]
    Load(#[from] peft_models::LoadError),
    /// An adapter cannot be written or read.
    #[error(transparent)]
    Peft(#[from] peft_core::Error),
}

/// For `map_err`: an I/O error with its file.
pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.into(),
        source,
    }
}

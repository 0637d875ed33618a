//! The suite's error.

use std::path::PathBuf;

/// Result of the suite's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a comparison cannot run or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A definition file is not what it should be.
    #[error("{file}: {reason}")]
    Definition {
        /// The file.
        file: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A name that no definition has.
    #[error("there is no {kind} `{name}`; there are {known}")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Names that would do.
        known: String,
    },
    /// Data are not what the task expects.
    #[error("task `{task}`: {reason}")]
    Expectation {
        /// The task.
        task: String,
        /// What differs.
        reason: String,
    },
    /// A model or data set is not on this machine.
    #[error("{0}")]
    Missing(String),
    /// Some runs failed; the others have results.
    #[error(
        "{failed} of the runs failed, the report names them: {first}; the same command tries them again"
    )]
    Failed {
        /// How many.
        failed: usize,
        /// The first of them, with its error.
        first: String,
    },
    /// Another comparison is writing there.
    #[error("{out}: another comparison is running into this folder; wait for it, or give another --out", out = out.display())]
    Busy {
        /// The folder of results.
        out: PathBuf,
    },
    /// Stopped by the user.
    #[error("stopped after {done} of {total} runs; the same command goes on from there")]
    Stopped {
        /// Finished runs.
        done: usize,
        /// All runs.
        total: usize,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// Rows cannot be read or split.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// A model cannot be loaded.
    #[error(transparent)]
    Load(#[from] peft_models::LoadError),
    /// Running text cannot be made into blocks.
    #[error(transparent)]
    Train(#[from] peft_train::Error),
    /// A method cannot be attached.
    #[error(transparent)]
    Peft(#[from] peft_core::Error),
    /// A result cannot be read or written.
    #[error(transparent)]
    Record(#[from] crate::record::RecordError),
    /// The report cannot be written.
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
}

/// For `map_err`: an I/O error with its file.
pub(crate) fn io(path: &std::path::Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.into(),
        source,
    }
}

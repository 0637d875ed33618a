//! What can be wrong with data.

use std::{io, path::PathBuf};

/// What is wrong with data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The extension names no known format.
    #[error("`{}`: the extension says nothing we know; use .tsv, .csv, .jsonl or .tab, or .txt for running text", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The columns cannot be told apart.
    #[error("`{}`: {problem}; found the columns: {found}. Name them with --text-column and --label-column", path.display())]
    Columns {
        /// The file.
        path: PathBuf,
        /// What is missing or unclear.
        problem: String,
        /// The names in the first line.
        found: String,
    },
    /// A line is not a row.
    #[error("`{}`, line {line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The content makes no task.
    #[error("`{}`: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// A part of a split has no rows.
    #[error("{name}: {rows} rows leave no {parts} rows; give at least {least}")]
    EmptyPart {
        /// The data set.
        name: String,
        /// Its rows.
        rows: usize,
        /// The empty parts, as in `dev and no test`.
        parts: String,
        /// Rows that would do.
        least: usize,
    },
    /// A split asks for more than there is.
    #[error(
        "{name} has {rows} rows, too few for a split into {train} train, {dev} dev and {test} test rows: ask for fewer"
    )]
    TooFewRows {
        /// The data set.
        name: String,
        /// Its rows.
        rows: usize,
        /// Asked for.
        train: usize,
        /// Asked for.
        dev: usize,
        /// Asked for.
        test: usize,
    },
}

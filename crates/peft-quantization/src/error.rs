//! The error of this crate. Its texts say what was wrong, where, and what would be right.

use std::path::PathBuf;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a matrix could not be quantized, or a quantized one not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of range.
    #[error("`{setting}` is {found}, but must be {expected}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// The value found.
        found: String,
        /// What is possible.
        expected: String,
    },
    /// The values do not fill the matrix.
    #[error("{values} values do not fill a matrix of shape [{rows}, {columns}]")]
    Length {
        /// Number of values.
        values: usize,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// A value is a NaN or an infinity, or too large for the format.
    #[error("value {index} is {value}, which {format} cannot hold")]
    NotFinite {
        /// Position in the flattened matrix.
        index: usize,
        /// The value found.
        value: f32,
        /// Name of the format.
        format: &'static str,
    },
    /// The second quantization's mean overflows.
    #[error(
        "absolute maxima up to {largest:e} overflow in double quantization; quantize with plain scales"
    )]
    Overflow {
        /// The largest absolute maximum of a block.
        largest: f32,
    },
    /// A part of a checkpoint's quantized weight cannot be used.
    #[error("quantized weight: `{part}` {reason}")]
    Part {
        /// Name of the part, as in `weight.absmax`.
        part: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A tensor of Burn's is not quantized, or in a scheme that is not read.
    #[error("a tensor quantized by Burn: {reason}")]
    Scheme {
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The singular values of a residual were not found.
    #[error("the singular values of a residual of shape [{rows}, {columns}] were not found")]
    SingularValues {
        /// Rows of the residual.
        rows: usize,
        /// Columns of the residual.
        columns: usize,
    },
    /// What was refused by the model.
    #[error(transparent)]
    Model(#[from] peft_core::Error),
    /// A file could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

impl Error {
    pub(crate) fn setting(
        setting: &'static str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Setting {
            setting,
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    pub(crate) fn part(part: &str, reason: impl Into<String>) -> Self {
        Self::Part {
            part: part.to_string(),
            reason: reason.into(),
        }
    }
}

/// Refuses matrices without elements, and values that do not fill theirs.
pub(crate) fn check_shape(values: usize, shape: [usize; 2]) -> Result<()> {
    let [rows, columns] = shape;
    if rows == 0 || columns == 0 {
        return Err(Error::setting(
            "shape",
            format!("[{rows}, {columns}]"),
            "at least one row and one column",
        ));
    }
    if rows.checked_mul(columns) == Some(values) {
        Ok(())
    } else {
        Err(Error::Length {
            values,
            rows,
            columns,
        })
    }
}

/// Refuses NaN and infinities.
pub(crate) fn check_finite(values: &[f32], format: &'static str) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite {
            index,
            value: values[index],
            format,
        }),
    }
}

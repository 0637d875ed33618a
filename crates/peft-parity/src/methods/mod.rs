//! README's table of methods: from the registry, from the checkpoints in this repository, and from
//! `docs/methods/table.toml`, which has what neither of them tells.
//!
//! `cargo xtask methods` writes the table between two markers of README, and a test holds README to it.

mod evidence;
mod rows;
mod table;

use std::path::{Path, PathBuf};

pub use evidence::{Evidence, method_of};
pub use rows::{Row, Rows};
pub use table::{BEGIN, END, table, with_table};

/// What is wrong with a file that the table is made of.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Wrong {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Wrong {
    pub(crate) fn new(path: &Path, reason: impl ToString) -> Self {
        Self {
            path: path.into(),
            reason: reason.to_string(),
        }
    }
}

/// A file's text.
pub(crate) fn text(path: &Path) -> Result<String, Wrong> {
    std::fs::read_to_string(path).map_err(|error| Wrong::new(path, error))
}

/// README with the table that belongs there; `root` is the repository's.
///
/// # Errors
///
/// [`Wrong`] for a file that cannot be read, a row that does not fit the registry, and a README without markers.
pub fn readme(root: &Path) -> Result<String, Wrong> {
    let path = root.join("README.md");
    let rows = Rows::read(root)?;
    let evidence = Evidence::gather(root)?;
    let table = table(&rows, &evidence);
    with_table(&text(&path)?, &table).map_err(|reason| Wrong::new(&path, reason))
}

//! Data: reading them from the formats people have, checking them, and splitting them without leaks.
//!
//! Texts with classes are a [`Dataset`]; running text for language models is a [`Texts`].
//!
//! | extension | read as |
//! |---|---|
//! | `.tsv` | tab-separated, quotes are text |
//! | `.csv` | separated by commas, or by semicolons or tabs if line 1 is; fields may be quoted and of several lines |
//! | `.jsonl`, `.ndjson` | one JSON object a line |
//! | `.tab` | Orange's: tab-separated, lines 2 and 3 describe the columns |
//! | `.txt` | running text |
//!
//! In a `.csv` a quote that begins a field must be closed: a delimiter or a line end follows the closing quote, and a
//! quote inside the field is written twice. A field of several lines is refused if one of its lines would be a whole
//! row by itself (as many fields as line 1, with a label that the file has): then the quote may be part of a text, and
//! rows would get lost.
//!
//! A split depends on the seed and the texts alone: not on the order of the rows, the platform, or a library's generator.

mod cut;
mod delimited;
mod error;
mod misspelled;
mod passages;
mod read;
mod split;
mod texts;

pub use error::DataError;
pub use passages::Passages;
pub use split::Split;
pub use texts::{Document, Texts};

use read::{RawRow, json_lines, quoted, tab_separated, utf8};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// A class: an index into [`Dataset::labels`].
pub type Label = usize;

/// One text with its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The text, never empty.
    pub text: String,
    /// Its class.
    pub label: Label,
}

/// A classification task's rows: two classes or more, no empty text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Name for reports.
    pub name: String,
    /// The rows, in the order of the source.
    pub rows: Vec<Row>,
    /// The classes as the source spells them: as numbers in numeric order if all are integers, else sorted as text.
    pub labels: Vec<String>,
}

/// Which columns hold what, where the usual names do not say it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// Name of the text column. Default: the first there is of `text`, `sentence`, `review`, `content`.
    pub text_column: Option<String>,
    /// Name of the label column. Default: the first there is of `label`, `class`, `target`, `sentiment`, `category`.
    pub label_column: Option<String>,
}

impl Dataset {
    /// Reads a file; its extension says how (see the [module](self)). A first line with one of the usual column names, or
    /// with the names given, is a header. Without a header there must be two columns: text, then label.
    ///
    /// # Errors
    /// An unreadable or unknown file, bytes that are not UTF-8, unclear columns, an empty text or label, fewer than two
    /// classes: each with the line where there is one.
    pub fn load(path: &Path, columns: &Columns) -> Result<Self, DataError> {
        let content = fs::read(path).map_err(|source| DataError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &content, columns)
    }

    /// Like [`load`](Self::load), for content at hand; `path` gives the name and the format.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(path: &Path, content: &[u8], columns: &Columns) -> Result<Self, DataError> {
        let text = utf8(path, content)?;
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let rows = match extension.to_str() {
            Some("tsv") => tab_separated(path, text, 0, columns)?,
            Some("tab") => tab_separated(path, text, 2, columns)?,
            Some("csv") => quoted(path, text, columns)?,
            Some("jsonl" | "ndjson") => json_lines(path, text, columns)?,
            _ => {
                return Err(DataError::Format {
                    path: path.to_owned(),
                });
            }
        };
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::from_raw(&name, path, rows)
    }

    /// The vendored UCI sentiment sentences: imdb, yelp, amazon in this order, 1,000 rows each.
    ///
    /// # Panics
    /// When the vendored files are damaged, which a test rules out.
    pub fn uci_sentiment() -> Self {
        let parts = [
            ("imdb.tsv", include_str!("../data/uci-sentiment/imdb.tsv")),
            ("yelp.tsv", include_str!("../data/uci-sentiment/yelp.tsv")),
            (
                "amazon.tsv",
                include_str!("../data/uci-sentiment/amazon.tsv"),
            ),
        ];
        let mut all = Self {
            name: "uci-sentiment".to_owned(),
            rows: Vec::new(),
            labels: Vec::new(),
        };
        for (file, content) in parts {
            let part = Self::parse(Path::new(file), content.as_bytes(), &Columns::default())
                .expect("the vendored files are tested");
            all.rows.extend(part.rows);
            all.labels = part.labels;
        }
        all
    }

    /// The most frequent class (the first of several) and its share of the rows: what always answering it scores.
    pub fn majority(&self) -> (Label, f64) {
        let count = |label| self.rows.iter().filter(|row| row.label == label).count();
        let best = (0..self.labels.len())
            .rev()
            .max_by_key(|label| count(*label))
            .unwrap_or(0);
        (best, count(best) as f64 / self.rows.len() as f64)
    }

    /// SHA-256, in hex, of the rows: `label <tab> text <newline>` each. Names the content in definitions and results.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for row in &self.rows {
            for part in [&self.labels[row.label], "\t", &row.text, "\n"] {
                hasher.update(part);
            }
        }
        texts::hex(&hasher.finalize())
    }

    fn from_raw(name: &str, path: &Path, raw: Vec<RawRow>) -> Result<Self, DataError> {
        let content = |problem: String| {
            Err(DataError::Content {
                path: path.to_owned(),
                problem,
            })
        };
        if let Some(row) = raw
            .iter()
            .find(|row| row.text.trim().is_empty() || row.label.trim().is_empty())
        {
            let what = if row.text.trim().is_empty() {
                "text"
            } else {
                "label"
            };
            return Err(DataError::Line {
                path: path.to_owned(),
                line: row.line,
                problem: format!("the {what} is empty"),
            });
        }
        let labels: BTreeSet<&str> = raw.iter().map(|row| row.label.trim()).collect();
        let mut labels: Vec<String> = labels.into_iter().map(str::to_owned).collect();
        if labels.iter().all(|label| label.parse::<i64>().is_ok()) {
            labels.sort_by_key(|label| label.parse::<i64>().unwrap_or_default());
        }
        match labels.as_slice() {
            [] => return content("there are no rows".to_owned()),
            [one] => {
                return content(format!(
                    "all rows have the label `{one}`; a task needs two classes"
                ));
            }
            [_, _, _, ..] if labels.len() == raw.len() => {
                return content(
                    "every row has its own label: is this the label column?".to_owned(),
                );
            }
            _ => {}
        }
        let ids: BTreeMap<&str, Label> = labels.iter().map(String::as_str).zip(0..).collect();
        let rows = raw
            .iter()
            .map(|row| Row {
                text: row.text.trim().to_owned(),
                label: ids[row.label.trim()],
            })
            .collect();
        Ok(Self {
            name: name.to_owned(),
            rows,
            labels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vendored_data_are_what_their_readme_says() {
        let data = Dataset::uci_sentiment();
        assert_eq!((data.rows.len(), data.labels.len()), (3000, 2));
        assert_eq!(data.majority(), (0, 0.5));
        assert_eq!(
            data.digest(),
            "d78774704370e3811508a4822e0596025e021db4f853445a523308d60753b2a6"
        );
        for part in data.rows.chunks(1000) {
            assert_eq!(part.iter().filter(|row| row.label == 1).count(), 500);
        }
    }
}

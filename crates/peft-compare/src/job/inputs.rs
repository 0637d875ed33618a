//! What a task reads: where it is, that it is what was meant, and its digests.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::hex;
use crate::data::{Columns, Dataset, Split, Texts};
use crate::definition::{DataSource, Kind, ModelSource, Reader, Rule, Task};
use crate::error::io;
use crate::{Error, Result};

/// Environment variable with the folder of the embedded model; `cargo xtask compare` sets it.
pub const EMBEDDED_MODEL: &str = "PEFT_EMBEDDED_MODEL";
/// Environment variable with the folder of fetched assets; `cargo xtask compare` sets it.
pub const ASSETS: &str = "PEFT_ASSETS";

/// What a run reads, by content, and what carries it out: results of other rows, other weights or
/// another release are never taken for this run's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// SHA-256 of the rows or texts.
    pub data: String,
    /// SHA-256 of the model's files.
    pub model: String,
    /// Release of this crate.
    pub peft: String,
}

impl Inputs {
    /// Those of a task.
    ///
    /// # Errors
    ///
    /// Missing or unexpected data, an unreadable model folder.
    pub fn of(task: &Task) -> Result<Self> {
        let data = match task.kind {
            Kind::Classification => rows(task)?.0.digest(),
            Kind::LanguageModel => texts(task)?.digest(),
        };
        let mut model = Sha256::new();
        for path in model_files(&model_folder(&task.model)?)? {
            model.update(std::fs::read(&path).map_err(io(&path))?);
        }
        Ok(Self {
            data,
            model: hex(&model.finalize()),
            peft: env!("CARGO_PKG_VERSION").to_string(),
        })
    }
}

/// The files that make a model: those of its folder, or the one GGUF file that it is.
fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_path_buf()]);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(model)
        .map_err(io(model))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let extension = path.extension().unwrap_or_default();
            ["json", "safetensors", "gguf"]
                .iter()
                .any(|known| extension == *known)
        })
        .collect();
    files.sort();
    Ok(files)
}

/// The folder of a model.
///
/// # Errors
///
/// [`Error::Missing`] with the command that brings it.
pub fn model_folder(source: &ModelSource) -> Result<PathBuf> {
    match source {
        ModelSource::Folder { path } => Ok(path.clone()),
        ModelSource::Embedded { name } => std::env::var_os(EMBEDDED_MODEL)
            .map(PathBuf::from)
            .ok_or_else(|| {
                Error::Missing(format!(
                    "the embedded model {name} was not found: start the comparison with \
                     `cargo xtask compare`, which brings it, or give --model and --data"
                ))
            }),
        ModelSource::Asset { name } => asset(name),
    }
}

fn asset(name: &str) -> Result<PathBuf> {
    let missing = || Error::Missing(format!("{name} is not here: `cargo xtask fetch {name}`"));
    let folder = PathBuf::from(std::env::var_os(ASSETS).ok_or_else(missing)?).join(name);
    if folder.is_dir() {
        Ok(folder)
    } else {
        Err(missing())
    }
}

fn refuse<T>(task: &Task, reason: impl Into<String>) -> Result<T> {
    Err(Error::Expectation {
        task: task.name.clone(),
        reason: reason.into(),
    })
}

/// The rows of a classification task and their split.
///
/// # Errors
///
/// Unreadable data, or other data than the task expects.
pub fn rows(task: &Task) -> Result<(Dataset, Split)> {
    let (data, given) = match &task.data {
        DataSource::Vendored { name, .. } if name == "uci-sentiment" => {
            (Dataset::uci_sentiment(), None)
        }
        DataSource::Vendored { name, .. } if name == "misspelled" => {
            let (data, split) = Dataset::misspelled();
            (data, Some((Rule::ByText, split)))
        }
        DataSource::Vendored { name, .. } => {
            return Err(Error::Missing(format!(
                "no rows `{name}` are vendored; there are misspelled and uci-sentiment"
            )));
        }
        DataSource::Asset {
            name,
            file,
            reader: Reader::MovieReviews,
        } => {
            let (data, split) = Dataset::movie_reviews(&asset(name)?.join(file))?;
            (data, Some((Rule::IndexMod10, split)))
        }
        DataSource::Asset {
            name,
            file,
            reader: Reader::Table | Reader::Text,
        } => (
            Dataset::load(&asset(name)?.join(file), &Columns::default())?,
            None,
        ),
        DataSource::File {
            path,
            text_column,
            label_column,
        } => {
            let columns = Columns {
                text_column: text_column.clone(),
                label_column: label_column.clone(),
            };
            (Dataset::load(path, &columns)?, None)
        }
    };
    check_rows(task, &data)?;
    let rule = &task.split;
    let split = match (rule.rule, given) {
        (Rule::Stratified, _) => {
            let (train, dev, test) = data.default_sizes();
            data.split(
                rule.seed,
                rule.train.unwrap_or(train),
                rule.dev.unwrap_or(dev),
                rule.test.unwrap_or(test),
            )?
        }
        (wanted, Some((rule, split))) if wanted == rule => shortened(split, task),
        (Rule::IndexMod10, _) => {
            return refuse(
                task,
                "the rule index-mod-10 is for the reader movie-reviews",
            );
        }
        (Rule::ByText, _) => {
            return refuse(
                task,
                "the rule by-text is for rows that are made of texts, and for tasks of kind language-model",
            );
        }
    };
    split.check(&data)?;
    Ok((data, split))
}

/// The texts of a language-model task.
///
/// # Errors
///
/// Unreadable data, or other data than the task expects.
pub fn texts(task: &Task) -> Result<Texts> {
    if task.split.rule != Rule::ByText {
        return refuse(task, "running text is split by the rule by-text");
    }
    let texts = match &task.data {
        DataSource::Vendored { name, .. } if name == "austen" => Texts::vendored(),
        DataSource::Vendored { name, .. } => {
            return Err(Error::Missing(format!(
                "no running text `{name}` is vendored; there is austen"
            )));
        }
        DataSource::Asset { name, file, .. } => Texts::load(&asset(name)?.join(file))?,
        DataSource::File { path, .. } => Texts::load(path)?,
    };
    if let Some(expect) = &task.expect {
        let documents = texts.train.len() + texts.held_out.len() + texts.general.len();
        same(task, "documents:", documents, expect.rows)?;
        same(
            task,
            "SHA-256 of the texts:",
            texts.digest(),
            expect.sha256.clone(),
        )?;
    }
    Ok(texts)
}

/// The first rows of each part, as many as the task wants.
fn shortened(mut split: Split, task: &Task) -> Split {
    let rule = &task.split;
    for (part, most) in [
        (&mut split.train, rule.train),
        (&mut split.dev, rule.dev),
        (&mut split.test, rule.test),
    ] {
        part.truncate(most.unwrap_or(usize::MAX));
    }
    split
}

fn check_rows(task: &Task, data: &Dataset) -> Result<()> {
    let Some(expect) = &task.expect else {
        return Ok(());
    };
    same(task, "rows:", data.rows.len(), expect.rows)?;
    same(task, "classes:", &data.labels, &expect.labels)?;
    if let Some(majority) = expect.majority {
        let digits = |share: f64| format!("{share:.4}");
        same(
            task,
            "majority share:",
            digits(data.majority().1),
            digits(majority),
        )?;
    }
    same(
        task,
        "SHA-256 of the rows:",
        data.digest(),
        expect.sha256.clone(),
    )
}

fn same<T: PartialEq + std::fmt::Debug>(
    task: &Task,
    what: &str,
    found: T,
    expected: T,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let reason =
        format!("{what} {found:?}, expected {expected:?}: these are other data than meant");
    refuse(task, reason)
}

//! The report of a comparison: `report.html`, `report.md`, `results.csv` and a table for the terminal.
//!
//! [`Report::new`] does all the thinking: it groups runs by suite, task and model, averages over seeds, and decides
//! what may be claimed. The four outputs only print it.

mod costs;
mod csv;
mod html;
mod markdown;
#[cfg(test)]
pub(crate) mod sample;
mod summary;
pub mod terminal;
mod units;
mod verdict;

pub use self::costs::{Axis, Costs};
pub use self::summary::{Group, MethodSummary, Report, Setting};
pub use self::verdict::Verdict;

use std::path::{Path, PathBuf};

use peft_core::files;

use crate::record::RunRecord;

/// Name of the method that trains the task head on the frozen backbone: the floor of classification.
pub const HEAD_ONLY: &str = "head-only";

/// Name of what trains nothing, the model as it came: the floor of language models.
pub const BASE: &str = "base";

/// Name of the method that trains every weight.
pub const FULL: &str = "full";

/// With fewer seeds nothing is ranked and nothing is claimed to beat anything.
pub const MIN_SEEDS: usize = 3;

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// There is nothing to report.
    #[error(
        "there are no runs to report; run the comparison first or point to the folder of its results"
    )]
    Empty,
    /// A file cannot be written.
    #[error("{0}; check that you may write there and that the disk is not full")]
    Write(#[source] peft_core::Error),
    /// The records have no JSON form.
    #[error(
        "the records have no JSON form: {0}; remove what is not plain data from their definitions"
    )]
    Json(#[from] serde_json::Error),
    /// The records have no CSV form.
    #[error("the records have no CSV form: {0}; this is a bug, please report it with the records")]
    Csv(#[from] ::csv::Error),
}

/// The files that [`write_all`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// `report.html`, for a browser; needs no network and no server.
    pub html: PathBuf,
    /// `report.md`, for GitHub.
    pub markdown: PathBuf,
    /// `results.csv`, one row per run.
    pub csv: PathBuf,
}

/// Writes `report.html`, `report.md` and `results.csv` to `dir`, which is created when missing.
///
/// # Errors
///
/// When there are no records or a file cannot be written.
pub fn write_all(dir: &Path, records: &[RunRecord]) -> Result<Written, ReportError> {
    if records.is_empty() {
        return Err(ReportError::Empty);
    }
    let report = Report::new(records);
    let write = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        match files::write(&path, content) {
            Ok(()) => Ok(path),
            Err(error) => Err(ReportError::Write(error)),
        }
    };
    Ok(Written {
        html: write("report.html", html::render(&report)?.as_bytes())?,
        markdown: write("report.md", markdown::render(&report).as_bytes())?,
        csv: write("results.csv", &csv::render(records)?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgetting_is_in_every_output() {
        let records = sample::language_model_records(3);
        let report = Report::new(&records);
        let markdown = super::markdown::render(&report);
        assert!(markdown.contains("| Perplexity |") && markdown.contains("| Forgetting |"));
        // lora's means: e to the loss, and what general text lost.
        let lora = report.groups[0].method("lora").unwrap();
        let perplexity = lora.test.unwrap().mean.exp();
        assert!(markdown.contains(&units::significant(perplexity)));
        assert!(markdown.contains(&units::gain(lora.forgetting.unwrap())));
        assert!(markdown.contains("untrained model"));
        let html = super::html::render(&report).unwrap();
        assert!(html.contains("\"forgetting\":{\"mean\""));
        let csv = String::from_utf8(super::csv::render(&records).unwrap()).unwrap();
        assert!(csv.starts_with("id,suite,task,kind,"));
        assert!(csv.lines().next().unwrap().contains(",forgetting,"));
        let table = terminal::table(&records);
        assert!(table.contains("perplexity") && table.contains("general text"));

        let records = sample::records(3);
        let markdown = super::markdown::render(&Report::new(&records));
        assert!(!markdown.contains("Perplexity |") && !markdown.contains("Forgetting |"));
    }

    #[test]
    fn all_files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let written = write_all(&dir.path().join("out"), &sample::records(1)).unwrap();
        assert!(
            [written.html, written.markdown, written.csv]
                .iter()
                .all(|path| path.is_file())
        );
        assert!(matches!(
            write_all(dir.path(), &[]),
            Err(ReportError::Empty)
        ));
    }
}

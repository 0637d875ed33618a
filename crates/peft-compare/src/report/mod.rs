//! The report of a comparison: `report.html`, `report.md`, `results.csv` and a table for the terminal.
//!
//! [`Report::new`] does all the thinking: it groups runs by suite, task and model, averages over seeds, and decides
//! what may be claimed. The four outputs only print it.

mod costs;
mod csv;
mod grids;
mod html;
mod markdown;
#[cfg(test)]
pub(crate) mod sample;
mod search;
mod sentences;
mod summary;
pub mod terminal;
mod units;
mod verdict;

pub use self::costs::{Axis, Costs};
pub use self::grids::grids;
pub use self::search::Search;
pub use self::summary::{Group, MethodSummary, Setting};
pub use self::verdict::Verdict;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use peft_core::files;
use serde::Serialize;

use crate::record::{Failure, RunRecord};

pub use crate::reference::{BASE, FULL, HEAD_ONLY};

/// With fewer seeds nothing is ranked and nothing is claimed to beat anything.
pub const MIN_SEEDS: usize = 3;

/// Everything the outputs show.
#[derive(Serialize, Debug, Clone)]
pub struct Report {
    /// One per suite, task and model, in this order.
    pub groups: Vec<Group>,
    /// Runs that failed.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Groups and summarises `records`, in any order.
    pub fn new(records: &[RunRecord]) -> Self {
        let mut groups: BTreeMap<_, Vec<&RunRecord>> = BTreeMap::new();
        for record in records {
            groups
                .entry((&record.suite, &record.task, &record.model.name))
                .or_default()
                .push(record);
        }
        Self {
            groups: groups.into_values().map(summarised).collect(),
            failures: Vec::new(),
        }
    }

    /// Adds the runs that failed.
    #[must_use]
    pub fn with_failures(mut self, failures: &[Failure]) -> Self {
        self.failures = failures.to_vec();
        self
    }
}

/// A group with what its runs show.
fn summarised(mut runs: Vec<&RunRecord>) -> Group {
    runs.sort_by_key(|run| (&run.method.name, run.seed, &run.started_at, &run.id));
    let mut group = Group::new(&runs);
    group.verdicts = sentences::verdicts(&group);
    group.warnings = sentences::warnings(&runs);
    group
}

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
/// When there are neither records nor failures, or a file cannot be written.
pub fn write_all(
    dir: &Path,
    records: &[RunRecord],
    failures: &[Failure],
) -> Result<Written, ReportError> {
    if records.is_empty() && failures.is_empty() {
        return Err(ReportError::Empty);
    }
    let report = Report::new(records).with_failures(failures);
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
        let table = terminal::table(&records, &[]);
        assert!(table.contains("perplexity") && table.contains("general text"));

        let records = sample::records(3);
        let markdown = super::markdown::render(&Report::new(&records));
        assert!(!markdown.contains("Perplexity |") && !markdown.contains("Forgetting |"));
    }

    #[test]
    fn what_failed_is_in_every_output() {
        let records = sample::records(1);
        let failures = [sample::failure("pfeiffer", 3e-3)];
        let report = Report::new(&records).with_failures(&failures);
        let error = failures[0].error.lines().next().unwrap();
        for output in [
            super::markdown::render(&report),
            super::html::render(&report).unwrap(),
            terminal::table(&records, &failures),
        ] {
            assert!(output.contains(error), "{output}");
        }
        assert!(!super::markdown::render(&Report::new(&records)).contains("## Failed"));
        // Where all failed there is a report, too.
        let dir = tempfile::tempdir().unwrap();
        let written = write_all(dir.path(), &[], &failures).unwrap();
        let markdown = std::fs::read_to_string(written.markdown).unwrap();
        assert!(markdown.contains("## Failed"));
    }

    #[test]
    fn every_output_says_where_in_its_grid_the_winner_lies() {
        let records = sample::records(1);
        let report = Report::new(&records);
        let markdown = super::markdown::render(&report);
        assert!(markdown.contains("| of the task | inside |"), "{markdown}");
        let html = super::html::render(&report).unwrap();
        assert!(html.contains("\"place\":\"inside\""));
        let csv = String::from_utf8(super::csv::render(&records).unwrap()).unwrap();
        assert!(csv.contains(",task,inside,"), "{csv}");
    }

    #[test]
    fn all_files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let written = write_all(&dir.path().join("out"), &sample::records(1), &[]).unwrap();
        assert!(
            [written.html, written.markdown, written.csv]
                .iter()
                .all(|path| path.is_file())
        );
        assert!(matches!(
            write_all(dir.path(), &[], &[]),
            Err(ReportError::Empty)
        ));
    }
}

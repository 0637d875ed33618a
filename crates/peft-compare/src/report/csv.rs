//! `results.csv`: one row per run, for a spreadsheet or a data frame.

use std::borrow::Cow;

use serde::Serialize;

use super::ReportError;
use super::costs::measured;
use crate::definition::Kind;
use crate::record::{GridSource, Place, RunRecord};

/// The columns, in order. Empty cells are values that were not measured, or no numbers.
#[derive(Serialize)]
struct Row<'a> {
    id: Cow<'a, str>,
    suite: Cow<'a, str>,
    task: Cow<'a, str>,
    kind: Kind,
    model: Cow<'a, str>,
    model_parameters: u64,
    method: Cow<'a, str>,
    family: Cow<'a, str>,
    seed: u64,
    learning_rate: f64,
    grid: Option<GridSource>,
    grid_place: Option<Place>,
    metric: Cow<'a, str>,
    test: Option<f64>,
    dev: Option<f64>,
    baseline: Option<f64>,
    general_before: Option<f64>,
    general_after: Option<f64>,
    forgetting: Option<f64>,
    train_rows: u64,
    dev_rows: u64,
    test_rows: u64,
    general_rows: u64,
    trainable: u64,
    changed: u64,
    stored: u64,
    total: u64,
    head: u64,
    rank_of_change: Option<u64>,
    adapter_bytes: u64,
    step_median_s: Option<f64>,
    step_p90_s: Option<f64>,
    tokens_per_s: Option<f64>,
    memory_bytes: Option<u64>,
    latency_base_ms: Option<f64>,
    latency_unmerged_ms: Option<f64>,
    latency_merged_ms: Option<f64>,
    wall_s: f64,
    started_at: Cow<'a, str>,
    device: Cow<'a, str>,
    threads: usize,
    cpu: Cow<'a, str>,
    kernels: Cow<'a, str>,
    burn: Cow<'a, str>,
    peft: Cow<'a, str>,
    revision: Cow<'a, str>,
    dirty: bool,
    definition_hash: Cow<'a, str>,
    config: Cow<'a, str>,
    notes: Cow<'a, str>,
}

impl<'a> Row<'a> {
    fn new(run: &'a RunRecord) -> Self {
        let score = |value: f64| value.is_finite().then_some(value);
        Self {
            id: text(&run.id),
            suite: text(&run.suite),
            task: text(&run.task),
            kind: run.kind,
            model: text(&run.model.name),
            model_parameters: run.model.parameters,
            method: text(&run.method.name),
            family: text(&run.method.family),
            seed: run.seed,
            learning_rate: run.learning_rate,
            grid: run.grid.as_ref().map(|grid| grid.source),
            grid_place: run.place(),
            metric: text(&run.metric.name),
            test: score(run.test),
            dev: score(run.dev),
            baseline: score(run.baseline),
            general_before: run.forgetting.map(|loss| loss.before),
            general_after: run.forgetting.and_then(|loss| score(loss.after)),
            forgetting: run.forgetting.and_then(|loss| score(loss.change())),
            train_rows: run.rows.train,
            dev_rows: run.rows.dev,
            test_rows: run.rows.test,
            general_rows: run.rows.general,
            trainable: run.counts.trainable,
            changed: run.counts.changed,
            stored: run.counts.stored,
            total: run.counts.total,
            head: run.counts.head,
            rank_of_change: run.rank_of_change,
            adapter_bytes: run.adapter_bytes,
            step_median_s: measured(run.step_s.median),
            step_p90_s: measured(run.step_s.p90),
            tokens_per_s: measured(run.tokens_per_s),
            memory_bytes: run.memory.needed(),
            latency_base_ms: measured(run.latency_ms.base),
            latency_unmerged_ms: measured(run.latency_ms.unmerged),
            latency_merged_ms: run.latency_ms.merged.and_then(measured),
            wall_s: run.wall_s,
            started_at: text(&run.started_at),
            device: text(&run.environment.device),
            threads: run.environment.threads,
            cpu: text(&run.environment.cpu),
            kernels: text(&run.environment.kernels),
            burn: text(&run.environment.burn),
            peft: text(&run.environment.peft),
            revision: text(&run.git.revision),
            dirty: run.git.dirty,
            definition_hash: text(&run.definition_hash),
            config: run.method.config.to_string().into(),
            notes: text(&run.notes.join("; ")).into_owned().into(),
        }
    }
}

/// A text as spreadsheets should take it: as text. What begins like a formula would be computed by them, so it gets an
/// apostrophe in front. Numbers are never written by this.
fn text(value: &str) -> Cow<'_, str> {
    if value.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        format!("'{value}").into()
    } else {
        value.into()
    }
}

/// The file's content.
pub(super) fn render(records: &[RunRecord]) -> Result<Vec<u8>, ReportError> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    for record in records {
        writer.serialize(Row::new(record))?;
    }
    writer
        .into_inner()
        .map_err(|error| ReportError::Csv(error.into_error().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_run_is_a_row() {
        let mut records = sample::records(1);
        records[0].test = f64::NAN;
        records[0].notes = vec!["a \"quoted\", note".into()];
        let bytes = render(&records).unwrap();
        let mut reader = ::csv::Reader::from_reader(bytes.as_slice());
        let column = reader
            .headers()
            .unwrap()
            .iter()
            .position(|name| name == "test")
            .unwrap();
        let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), records.len());
        assert_eq!(&rows[0][column], "");
        assert_eq!(rows[1][column], records[1].test.to_string());
        assert_eq!(rows[0].iter().next_back().unwrap(), "a \"quoted\", note");
    }

    #[test]
    fn names_that_look_like_formulas_are_text_and_numbers_stay_numbers() {
        let mut records = sample::language_model_records(1);
        records[0].task = "=HYPERLINK(\"x\")".into();
        records[0].model.name = "@model".into();
        records[0].method.name = "-lora".into();
        records[0].notes = vec!["+1".into()];
        records[0].forgetting = Some(crate::record::Forgetting {
            before: 3.5,
            after: 3.25,
        });
        records[0].baseline = f64::NAN;
        let bytes = render(&records).unwrap();
        let mut reader = ::csv::Reader::from_reader(bytes.as_slice());
        let names = reader.headers().unwrap().clone();
        let row = reader.records().next().unwrap().unwrap();
        let cell = |name: &str| &row[names.iter().position(|found| found == name).unwrap()];
        assert_eq!(cell("task"), "'=HYPERLINK(\"x\")");
        assert_eq!(cell("model"), "'@model");
        assert_eq!(cell("method"), "'-lora");
        assert_eq!(cell("notes"), "'+1");
        assert_eq!(cell("forgetting"), "-0.25");
        assert_eq!(cell("baseline"), "");
    }
}

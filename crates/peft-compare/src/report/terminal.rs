//! The table at the end of a run.

use std::fmt::Write;

use super::units::{
    bytes, count, estimate, optional, percent, plural, rank_interval, score, significant,
};
use super::{Axis, Group, MethodSummary, Report};
use crate::definition::Kind;
use crate::record::{Failure, RunRecord};

/// Columns of a terminal that the table fits in.
pub const WIDTH: usize = 120;

const HEADER: [[&str; 2]; 12] = [
    ["", "method"],
    ["", "test"],
    ["of", "gap"],
    ["rank", "interval"],
    ["train-", "able"],
    ["", "changed"],
    ["", "stored"],
    ["", "adapter"],
    ["step", "ms"],
    ["peak", "MiB"],
    ["latency ms", "un-/merged/base"],
    ["on", "front"],
];

/// A table of all methods for each suite, task and model, at most [`WIDTH`] columns wide, with what may be claimed.
/// What failed follows.
pub fn table(records: &[RunRecord], failures: &[Failure]) -> String {
    let report = Report::new(records);
    let mut out = report
        .groups
        .iter()
        .map(group_table)
        .collect::<Vec<_>>()
        .join("\n");
    for failure in failures {
        wrap(&mut out, &format!("Failed: {}", failure.line()));
    }
    out
}

fn group_table(group: &Group) -> String {
    let mut rows = vec![
        HEADER.map(|[top, _]| top.into()),
        HEADER.map(|[_, bottom]| bottom.into()),
    ];
    rows.extend(
        group
            .methods
            .iter()
            .map(|summary| cells(group.kind, summary)),
    );
    let widths: [usize; HEADER.len()] = std::array::from_fn(|column| {
        rows.iter()
            .map(|row| width(&row[column]))
            .max()
            .unwrap_or(0)
    });
    let others: usize = widths[1..].iter().map(|width| width + 2).sum();
    let first = widths[0].min(WIDTH.saturating_sub(others));

    let seeds = group
        .methods
        .iter()
        .map(|summary| summary.runs.len())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    let heading = format!(
        "{} / {} on {}: {} on {} test {}, {}, {} {}",
        group.suite,
        group.task,
        group.model.name,
        group.metric.name,
        group.rows.test,
        group.kind.rows(),
        plural(seeds, "seed"),
        group.kind.baseline_score(),
        score(group.baseline),
    );
    wrap(&mut out, &heading);
    for (index, row) in rows.iter().enumerate() {
        let mut line = format!("{:<first$}", shorten(&row[0], first));
        for (cell, width) in row[1..].iter().zip(&widths[1..]) {
            let _ = write!(line, "  {cell:>width$}");
        }
        let _ = writeln!(out, "{}", line.trim_end());
        if index == 1 {
            let _ = writeln!(out, "{}", "─".repeat(first + others));
        }
    }
    let axes = format!(
        "front: no other method's mean is as good for less of P trainable parameters, M peak memory, T step time, \
         B adapter bytes, L unmerged latency{}",
        match group.kind {
            Kind::Classification => ". The task head is trained by all and in none of the counts.",
            Kind::LanguageModel => ", F forgetting.",
        }
    );
    let warnings = group
        .warnings
        .iter()
        .map(|warning| format!("Warning: {warning}"));
    for sentence in group.verdicts.iter().cloned().chain(warnings).chain([axes]) {
        wrap(&mut out, &sentence);
    }
    out
}

fn cells(kind: Kind, summary: &MethodSummary) -> [String; HEADER.len()] {
    let costs = &summary.costs;
    [
        summary.method.name.clone(),
        optional(summary.test, estimate),
        optional(summary.share_of_gap, percent),
        optional(summary.rank_interval, rank_interval),
        optional(costs.trainable, count),
        optional(costs.changed, count),
        optional(costs.stored, count),
        optional(costs.adapter_bytes, bytes),
        optional(costs.step_ms, significant),
        optional(
            costs.memory_bytes.map(|bytes| bytes / f64::from(1 << 20)),
            significant,
        ),
        [costs.unmerged_ms, costs.merged_ms, costs.base_ms]
            .map(|ms| optional(ms, significant))
            .join("/"),
        Axis::of_kind(kind)
            .map(|axis| {
                if summary.pareto.contains(&axis) {
                    axis.letter()
                } else {
                    '·'
                }
            })
            .collect(),
    ]
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn shorten(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.into();
    }
    text.chars()
        .take(limit.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// Appends `text` in lines of at most [`WIDTH`]; the lines after the first are indented.
fn wrap(out: &mut String, text: &str) {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && width(&line) + 1 + width(word) > WIDTH {
            let _ = writeln!(out, "{line}");
            line = " ".into();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

#[cfg(test)]
mod tests {
    use super::super::units::MISSING;
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_table_fits() {
        for seeds in [1, 3] {
            let mut records = sample::records(seeds);
            for record in &mut records {
                // The widest cells there can be, and a name that must give way.
                record.adapter_bytes = 1023 << 10;
                record.counts.changed = 999_499;
                record.latency_ms.base = 12.34;
                if record.method.name == "lora-all" {
                    record.method.name = "a-method-with-a-very-long-name-indeed".into();
                }
            }
            let table = table(&records, &[]);
            let widest = table.lines().map(width).max().unwrap();
            assert!(widest <= WIDTH, "{widest} columns:\n{table}");
            assert!(table.contains('…'));
        }
        let table = table(&sample::language_model_records(3), &[]);
        assert!(table.lines().all(|line| width(line) <= WIDTH), "{table}");
        assert!(table.contains("loss on 40 test blocks") && table.contains("untrained model"));
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let mut record = sample::record("lora", 1);
        record.memory.peak_bytes = 0;
        record.latency_ms.unmerged = 0.0;
        record.test = f64::NAN;
        let group = &Report::new(&[record]).groups[0];
        let cells = cells(group.kind, &group.methods[0]);
        assert_eq!([&cells[1], &cells[2], &cells[9]], [MISSING; 3]);
        assert_eq!(cells[10], "–/3.10/3.10");
    }
}

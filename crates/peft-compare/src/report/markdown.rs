//! `report.md`, for GitHub.

use std::fmt::Write;

use super::units::{
    MISSING, bytes, count, estimate, gain, optional, percent, rank_interval, score, significant,
};
use super::{BASE, Group, MethodSummary, Report, Search};
use crate::definition::Kind;
use crate::record::Failure;

/// The file's content.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::from("# Method comparison\n");
    for group in &report.groups {
        render_group(&mut out, group);
    }
    render_failures(&mut out, &report.failures);
    out.push_str(
        "\n## How to read this\n\n\
         - ± is half of the 95 % interval of the mean over seeds (Student's t). Each interval is right 19 times of 20 \
         on its own; among many methods, expect one to be wrong.\n\
         - The *baseline method* is the reference that trains least: a task head on the frozen backbone (head-only), and of \
         language models the model as it came (base).\n\
         - *Gain* is the difference to the baseline method, paired over seeds; positive is better, also of a loss.\n\
         - *Of gap* is the share of the gap between the baseline method (0 %) and full fine-tuning (100 %).\n\
         - A *loss* is the mean negative log likelihood of a token in nats; *perplexity* is e to its mean. \
         *Forgetting* is what the loss on general text rose by in training; below 0 it fell.\n\
         - *Rank interval* is the best and worst rank that the intervals allow.\n\
         - *Trainable*, *changed* and *stored* leave out the task head, which every method trains.\n\
         - *Peak* is the memory of training above that of the loaded model.\n\
         - *Front* lists the costs on which no other method's mean is as good for less: P trainable parameters, M peak \
         memory, T step time, B adapter bytes, L unmerged latency, F forgetting.\n\
         - A winner *inside* its grid has a smaller and a larger rate beside it that are no better. *End* is the smallest or largest \
         rate: a better one may lie beyond. It is *flat* if a rate inside the grid is as good, but for one standard error of the \
         dev score.\n\
         - – was not measured or does not exist.\n",
    );
    out
}

fn render_group(out: &mut String, group: &Group) {
    let heading = format!("{} / {} on {}", group.suite, group.task, group.model.name);
    let _ = write!(out, "\n## {}\n\n{}\n\n", escape(&heading), group.analysis);
    let general = match group.rows.general {
        0 => String::new(),
        blocks => format!(", and {blocks} of general text"),
    };
    let _ = writeln!(
        out,
        "{} ({} parameters, {}); {} train, {} dev and {} test {}{general}; metric {}, {} is better; {} {}.\n",
        escape(&group.model.name),
        count(group.model.parameters as f64),
        escape(&group.model.source),
        group.rows.train,
        group.rows.dev,
        group.rows.test,
        group.kind.rows(),
        escape(&group.metric.name),
        if group.metric.higher_is_better {
            "higher"
        } else {
            "lower"
        },
        group.kind.baseline_score(),
        score(group.baseline),
    );
    for verdict in &group.verdicts {
        let _ = writeln!(out, "- {}", escape(verdict));
    }
    for warning in &group.warnings {
        let _ = writeln!(out, "- **Warning:** {}", escape(warning));
    }
    out.push_str("\n### Results\n\n");
    let columns: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| column.kinds.contains(&group.kind))
        .collect();
    let header: Vec<&str> = columns.iter().map(|column| column.title).collect();
    let rows = group.methods.iter().map(|summary| -> Vec<String> {
        let cells = columns.iter().map(|column| (column.cell)(summary));
        cells.collect()
    });
    table(out, &header, rows);
    let notes = group
        .methods
        .iter()
        .flat_map(|summary| &summary.runs)
        .flat_map(|run| {
            run.notes.iter().map(|note| {
                format!(
                    "- {}, seed {}: {}\n",
                    escape(&run.method.name),
                    run.seed,
                    escape(note)
                )
            })
        });
    let notes: String = notes.collect();
    if !notes.is_empty() {
        let _ = write!(out, "\n{notes}");
    }
    out.push_str(
        "\n### Learning rates\n\nTried on the dev split; the one in bold won. *Grid* says whose rates they are, *winner* where \
         among them it lies.\n\n",
    );
    table(
        out,
        &[
            "Method",
            "Seeds",
            "Learning rate: dev score",
            "Grid",
            "Winner",
        ],
        group.methods.iter().flat_map(tuning_rows),
    );
    render_settings(out, group);
}

fn render_failures(out: &mut String, failures: &[Failure]) {
    if failures.is_empty() {
        return;
    }
    out.push_str(
        "\n## Failed\n\nThese runs have no result. The same command tries them again.\n\n",
    );
    table(
        out,
        &[
            "Suite",
            "Task",
            "Model",
            "Method",
            "Learning rate",
            "Seed",
            "Failed at",
            "Error",
        ],
        failures.iter().map(|failure| {
            vec![
                failure.suite.clone(),
                failure.task.clone(),
                failure.model.clone(),
                failure.method.clone(),
                format!("{:e}", failure.learning_rate),
                failure.seed.to_string(),
                failure.failed_at.clone(),
                failure.error.clone(),
            ]
        }),
    );
}

fn render_settings(out: &mut String, group: &Group) {
    out.push_str("\n### What ran on what\n\n");
    table(
        out,
        &[
            "Runs", "Device", "Threads", "CPU", "Kernels", "OS", "Burn", "PEFT", "rustc",
            "Revision",
        ],
        group.settings.iter().map(|setting| {
            let environment = &setting.environment;
            vec![
                setting.runs.to_string(),
                environment.device.clone(),
                environment.threads.to_string(),
                environment.cpu.clone(),
                environment.kernels.clone(),
                environment.os.clone(),
                environment.burn.clone(),
                environment.peft.clone(),
                environment.rustc.clone(),
                format!(
                    "{}{}",
                    setting.git.revision,
                    if setting.git.dirty { " (dirty)" } else { "" }
                ),
            ]
        }),
    );
    out.push('\n');
    table(
        out,
        &["Method", "Reference", "Configuration", "Definition"],
        group.methods.iter().map(|summary| {
            let hash = &summary.runs[0].definition_hash;
            let method = &summary.method;
            vec![
                method.title.clone(),
                method.reference.clone(),
                method.config.to_string(),
                hash.clone(),
            ]
        }),
    );
}

/// A column of the results.
struct Column {
    title: &'static str,
    /// The tasks that have it.
    kinds: &'static [Kind],
    cell: fn(&MethodSummary) -> String,
}

const BOTH: &[Kind] = &[Kind::Classification, Kind::LanguageModel];
const LANGUAGE: &[Kind] = &[Kind::LanguageModel];

const fn column(
    title: &'static str,
    kinds: &'static [Kind],
    cell: fn(&MethodSummary) -> String,
) -> Column {
    Column { title, kinds, cell }
}

static COLUMNS: [Column; 20] = [
    column("Method", BOTH, |m| m.method.name.clone()),
    column("Family", BOTH, |m| m.method.family.clone()),
    column("Test", BOTH, |m| optional(m.test, estimate)),
    column("Perplexity", LANGUAGE, |m| {
        optional(m.test, |test| significant(test.mean.exp()))
    }),
    column("Seeds", BOTH, |m| m.runs.len().to_string()),
    column("Gain", BOTH, |m| optional(m.gain, gain)),
    column("Of gap", BOTH, |m| optional(m.share_of_gap, percent)),
    column("Rank interval", BOTH, |m| {
        optional(m.rank_interval, rank_interval)
    }),
    column("Forgetting", LANGUAGE, |m| optional(m.forgetting, gain)),
    column("Trainable", BOTH, |m| optional(m.costs.trainable, count)),
    column("Changed", BOTH, |m| optional(m.costs.changed, count)),
    column("Stored", BOTH, |m| optional(m.costs.stored, count)),
    column("Rank of change", BOTH, |m| {
        optional(m.costs.rank_of_change, count)
    }),
    column("Adapter", BOTH, |m| optional(m.costs.adapter_bytes, bytes)),
    column("Step ms", BOTH, |m| optional(m.costs.step_ms, significant)),
    column("Peak", BOTH, |m| optional(m.costs.memory_bytes, bytes)),
    column("Unmerged ms", BOTH, |m| {
        optional(m.costs.unmerged_ms, significant)
    }),
    column("Merged ms", BOTH, |m| {
        optional(m.costs.merged_ms, significant)
    }),
    column("Base ms", BOTH, |m| optional(m.costs.base_ms, significant)),
    column("Front", BOTH, front),
];

fn front(summary: &MethodSummary) -> String {
    if summary.pareto.is_empty() {
        MISSING.into()
    } else {
        summary.pareto.iter().map(|axis| axis.letter()).collect()
    }
}

/// A row for each search.
fn tuning_rows(summary: &MethodSummary) -> Vec<Vec<String>> {
    let rates = |search: &Search| {
        let trials = search.tuning.iter().map(|trial| {
            let dev = if trial.error.is_some() {
                "failed".into()
            } else {
                score(trial.dev)
            };
            let text = format!("{:e}: {dev}", trial.learning_rate);
            if trial.learning_rate.total_cmp(&search.learning_rate).is_eq() {
                format!("**{text}**")
            } else {
                text
            }
        });
        let trials = trials.collect::<Vec<_>>().join(", ");
        if summary.method.name == BASE {
            "not trained".into()
        } else if trials.is_empty() {
            format!("not tuned; {:e}", search.learning_rate)
        } else {
            trials
        }
    };
    let row = |search: &Search| {
        let seeds: Vec<_> = search.seeds.iter().map(u64::to_string).collect();
        vec![
            summary.method.name.clone(),
            seeds.join(", "),
            rates(search),
            optional(search.grid.clone(), String::from),
            optional(search.place_words, String::from),
        ]
    };
    summary.searches.iter().map(row).collect()
}

fn table(out: &mut String, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let _ = writeln!(
        out,
        "| {} |\n|{}",
        header.join(" | "),
        " --- |".repeat(header.len())
    );
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| escape(cell)).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
}

/// Keeps text from ending its cell, its line, or being taken for HTML.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('<', "&lt;")
        .replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn cells_stay_in_their_table() {
        let mut record = sample::record("lora", 1);
        record.method.name = "a|b<script>\nc".into();
        let text = render(&Report::new(&[record]));
        assert!(text.contains("| a\\|b&lt;script> c |"));
        for rows in text.split("\n\n").filter(|block| block.starts_with("| ")) {
            let columns = |line: &str| line.replace("\\|", "").matches('|').count();
            assert!(
                rows.lines()
                    .all(|line| columns(line) == columns(rows.lines().next().unwrap())),
                "{rows}"
            );
        }
    }
}

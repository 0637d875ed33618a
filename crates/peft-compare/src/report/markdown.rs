//! `report.md`, for GitHub.

use std::fmt::Write;

use super::units::{
    MISSING, bytes, count, estimate, gain, optional, percent, place, score, significant,
};
use super::{Group, MethodSummary, Report};
use crate::record::RunRecord;

/// The file's content.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::from("# Method comparison\n");
    for group in &report.groups {
        render_group(&mut out, group);
    }
    out.push_str(
        "\n## How to read this\n\n\
         - ± is half of the 95 % interval of the mean over seeds (Student's t). Each interval is right 19 times of 20 \
         on its own; among many methods, expect one to be wrong.\n\
         - *Gain* is the difference to head-only, paired over seeds; positive is better.\n\
         - *Of gap* is the share of the gap between head-only (0 %) and full fine-tuning (100 %).\n\
         - *Place* is the best and worst rank that the intervals allow.\n\
         - *Trainable*, *changed* and *stored* leave out the task head, which every method trains.\n\
         - *Peak* is the memory of training above that of the loaded model.\n\
         - *Front* lists the costs on which no other method's mean is as good for less: P trainable parameters, M peak \
         memory, T step time, B adapter bytes, L unmerged latency.\n\
         - – was not measured or does not exist.\n",
    );
    out
}

fn render_group(out: &mut String, group: &Group) {
    let heading = format!("{} / {} on {}", group.suite, group.task, group.model.name);
    let _ = write!(out, "\n## {}\n\n{}\n\n", escape(&heading), group.analysis);
    let _ = writeln!(
        out,
        "{} ({} parameters, {}); {} train, {} dev and {} test rows; metric {}, {} is better; majority class {}.\n",
        escape(&group.model.name),
        count(group.model.parameters as f64),
        escape(&group.model.source),
        group.rows.train,
        group.rows.dev,
        group.rows.test,
        escape(&group.metric.name),
        if group.metric.higher_is_better {
            "higher"
        } else {
            "lower"
        },
        score(group.majority),
    );
    for verdict in &group.verdicts {
        let _ = writeln!(out, "- {}", escape(verdict));
    }
    for warning in &group.warnings {
        let _ = writeln!(out, "- **Warning:** {}", escape(warning));
    }
    out.push_str("\n### Results\n\n");
    table(
        out,
        &[
            "Method",
            "Family",
            "Test",
            "Seeds",
            "Gain",
            "Of gap",
            "Place",
            "Trainable",
            "Changed",
            "Stored",
            "Rank",
            "Adapter",
            "Step ms",
            "Peak",
            "Unmerged ms",
            "Merged ms",
            "Base ms",
            "Front",
        ],
        group.methods.iter().map(result_row),
    );
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
    out.push_str("\n### Learning rates\n\nTried on the dev split; the one in bold won.\n\n");
    table(
        out,
        &["Method", "Seeds", "Learning rate: dev score"],
        group.methods.iter().flat_map(tuning_rows),
    );
    render_settings(out, group);
}

fn render_settings(out: &mut String, group: &Group) {
    out.push_str("\n### What ran on what\n\n");
    table(
        out,
        &[
            "Runs", "Device", "Threads", "CPU", "OS", "Burn", "PEFT", "rustc", "Revision",
        ],
        group.settings.iter().map(|setting| {
            let environment = &setting.environment;
            vec![
                setting.runs.to_string(),
                environment.device.clone(),
                environment.threads.to_string(),
                environment.cpu.clone(),
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

fn result_row(summary: &MethodSummary) -> Vec<String> {
    let costs = &summary.costs;
    vec![
        summary.method.name.clone(),
        summary.method.family.clone(),
        optional(summary.test, estimate),
        summary.runs.len().to_string(),
        optional(summary.gain, gain),
        optional(summary.share_of_gap, percent),
        optional(summary.place, place),
        optional(costs.trainable, count),
        optional(costs.changed, count),
        optional(costs.stored, count),
        optional(costs.rank_of_change, count),
        optional(costs.adapter_bytes, bytes),
        optional(costs.step_ms, significant),
        optional(costs.memory_bytes, bytes),
        optional(costs.unmerged_ms, significant),
        optional(costs.merged_ms, significant),
        optional(costs.base_ms, significant),
        if summary.pareto.is_empty() {
            MISSING.into()
        } else {
            summary.pareto.iter().map(|axis| axis.letter()).collect()
        },
    ]
}

/// Seeds that share one search share a row.
fn tuning_rows(summary: &MethodSummary) -> Vec<Vec<String>> {
    let search = |run: &RunRecord| {
        let trials = run.tuning.iter().map(|trial| {
            let text = format!("{:e}: {}", trial.learning_rate, score(trial.dev));
            if trial.learning_rate.total_cmp(&run.learning_rate).is_eq() {
                format!("**{text}**")
            } else {
                text
            }
        });
        let trials = trials.collect::<Vec<_>>().join(", ");
        if trials.is_empty() {
            format!("not tuned; {:e}", run.learning_rate)
        } else {
            trials
        }
    };
    let searches = summary.runs.chunk_by(|a, b| {
        a.tuning == b.tuning && a.learning_rate.total_cmp(&b.learning_rate).is_eq()
    });
    searches
        .map(|runs| {
            let seeds: Vec<_> = runs.iter().map(|run| run.seed.to_string()).collect();
            vec![
                summary.method.name.clone(),
                seeds.join(", "),
                search(&runs[0]),
            ]
        })
        .collect()
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

//! What the runs of a group show and what they do not, in sentences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use super::units::{gain, significant};
use super::verdict::Verdict;
use super::{BASE, FULL, Group, MIN_SEEDS, MethodSummary};
use crate::definition::Kind;
use crate::record::{Place, RunRecord};
use crate::statistics::MEANINGFUL_GAP;

/// What the runs of a group show, in sentences.
pub(super) fn verdicts(group: &Group) -> Vec<String> {
    let baseline = group.baseline_method;
    let mut sentences = against_baseline(group);
    let named = |sentence: &str, keep: &dyn Fn(&MethodSummary) -> bool| {
        let kept = group.methods.iter().filter(|summary| keep(summary));
        list(sentence, kept.map(|summary| &summary.method.name))
    };
    sentences.extend(named(
        "Without a mean, because a seed diverged",
        &|summary| summary.test.is_none(),
    ));
    let has_baseline = group.method(baseline).is_some();
    if has_baseline {
        sentences.extend(named(
            &format!("Not comparable with {baseline}, which diverged or has no seed in common"),
            &|summary| summary.test.is_some() && summary.beats_baseline == Verdict::Unknown,
        ));
    }
    let oriented = |score| group.metric.oriented(score);
    // The untrained language model is the baseline itself.
    if group.kind == Kind::Classification {
        sentences.extend(named(
            "No better than always answering the majority class",
            &|summary| {
                summary
                    .test
                    .is_some_and(|test| oriented(test.mean) <= oriented(group.baseline))
            },
        ));
    }
    if !has_baseline {
        sentences.push(format!(
            "{} did not run, so nothing can be said to beat it.",
            match group.kind {
                Kind::Classification => "Head-only, the frozen backbone,",
                Kind::LanguageModel => "The base model as it came",
            }
        ));
    }
    sentences.extend(no_share_of_gap(group));
    sentences.extend(perplexities(group));
    sentences.extend(forgotten(group));
    let at = |places: &'static [Place]| {
        move |summary: &MethodSummary| {
            let mut found = summary.runs.iter().filter_map(RunRecord::place);
            found.any(|place| places.contains(&place))
        }
    };
    sentences.extend(named(
        "The highest or lowest learning rate of the grid won, a better one may lie beyond",
        &at(&[Place::LowEnd, Place::HighEnd]),
    ));
    sentences.extend(named(
        "The highest or lowest learning rate of the grid won, but one inside it is as good within a standard error of the dev score",
        &at(&[Place::Flat]),
    ));
    sentences.extend(ranking(group));
    sentences.extend(sampling_error(group));
    sentences
}

fn against_baseline(group: &Group) -> Vec<String> {
    type Holds = fn(Verdict, f64) -> bool;
    let baseline = group.baseline_method;
    let few = format!("on fewer than {MIN_SEEDS} seeds");
    let claims: [(String, Holds); 5] = [
        (format!("Beat {baseline}"), |verdict, _| {
            verdict == Verdict::Beats
        }),
        (
            format!("Do not beat {baseline}, the interval of the difference includes zero"),
            |verdict, _| verdict == Verdict::NotShown,
        ),
        (
            format!("Do not beat {baseline}, they are worse"),
            |verdict, _| verdict == Verdict::Worse,
        ),
        (format!("Do not beat {baseline}, {few}"), |verdict, gain| {
            verdict == Verdict::TooFewSeeds && gain <= 0.0
        }),
        (
            format!("Better than {baseline}, but {few}, which is no evidence yet"),
            |verdict, gain| verdict == Verdict::TooFewSeeds && gain > 0.0,
        ),
    ];
    let sentence = |(sentence, holds): (String, Holds)| {
        let methods = group.methods.iter().filter_map(|summary| {
            let difference = summary.gain?;
            holds(summary.beats_baseline, difference.mean)
                .then(|| format!("{} ({})", summary.method.name, gain(difference)))
        });
        list(&sentence, methods)
    };
    claims.into_iter().filter_map(sentence).collect()
}

/// Why there is no share of the gap, where no method has one.
fn no_share_of_gap(group: &Group) -> Option<String> {
    let baseline = group.baseline_method;
    let shares = |summary: &MethodSummary| summary.share_of_gap.is_some();
    if group.methods.iter().any(shares) {
        return None;
    }
    if group.method(baseline).and(group.method(FULL)).is_none() {
        return Some(format!(
            "The share of the gap needs {baseline} and full fine-tuning, both with a seed of the method."
        ));
    }
    Some(format!(
        "Full fine-tuning does not beat {baseline} by {MEANINGFUL_GAP} or more, so there is no gap \
         to close a share of."
    ))
}

/// The losses of language models as people know them.
fn perplexities(group: &Group) -> Option<String> {
    if group.kind != Kind::LanguageModel {
        return None;
    }
    let methods = group.methods.iter().filter_map(|summary| {
        let perplexity = summary.test?.mean.exp();
        Some(format!(
            "{} {}",
            summary.method.name,
            significant(perplexity)
        ))
    });
    list("Test perplexity, e to the mean loss", methods)
}

/// What each method did to the loss on general text.
fn forgotten(group: &Group) -> Option<String> {
    let methods = group.methods.iter().filter_map(|summary| {
        let rise = summary.forgetting?;
        (summary.method.name != group.baseline_method)
            .then(|| format!("{} {}", summary.method.name, gain(rise)))
    });
    list(
        "Forgetting, what the loss on general text rose by in nats a token, less is better",
        methods,
    )
}

fn ranking(group: &Group) -> Vec<String> {
    if group
        .methods
        .iter()
        .all(|summary| summary.rank_interval.is_none())
    {
        return vec![format!(
            "Not a ranking: rows are in the order of their means, and it takes at least {MIN_SEEDS} seeds of two \
             methods to rank them."
        )];
    }
    let mut sentences = vec![
        "A rank interval is the best and worst rank that the intervals allow: methods whose intervals overlap are not ranked \
         apart."
            .into(),
    ];
    let few = group
        .methods
        .iter()
        .filter(|summary| summary.runs.len() < MIN_SEEDS);
    sentences.extend(list(
        &format!("Not ranked, fewer than {MIN_SEEDS} seeds"),
        few.map(|summary| &summary.method.name),
    ));
    sentences
}

/// Intervals over seeds leave out the luck of the test rows; for accuracy that luck is binomial.
fn sampling_error(group: &Group) -> Option<String> {
    let best = group.methods.first()?.test?.mean;
    if group.metric.name != "accuracy" || !(0.0..=1.0).contains(&best) || group.rows.test == 0 {
        return None;
    }
    let error = 1.96 * (best * (1.0 - best) / group.rows.test as f64).sqrt();
    Some(format!(
        "Intervals over seeds leave out the choice of test rows: {} rows drawn anew may move an accuracy of {best:.3} \
         by about {error:.3}.",
        group.rows.test
    ))
}

/// What makes the runs of a group hard to compare, in sentences.
pub(super) fn warnings(runs: &[&RunRecord]) -> Vec<String> {
    let mut seeds: BTreeMap<(&str, u64), usize> = BTreeMap::new();
    let mut definitions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for run in runs {
        *seeds.entry((&run.method.name, run.seed)).or_default() += 1;
        definitions
            .entry(&run.method.name)
            .or_default()
            .insert(&run.definition_hash);
    }
    let twice = seeds.iter().filter(|(_, runs)| **runs > 1);
    let mixed = definitions.iter().filter(|(_, hashes)| hashes.len() > 1);
    let tuned = runs.iter().filter(|run| run.method.name != BASE);
    let trials: BTreeSet<usize> = tuned.map(|run| run.tuning.len()).collect();
    let diverged = runs.iter().filter(|run| !run.test.is_finite());
    let lists = [
        list(
            "These seeds ran twice or more, the latest run counts",
            twice.map(|((method, seed), _)| format!("{method} seed {seed}")),
        ),
        list(
            "The runs of these methods have different definitions, do not average them",
            mixed.map(|(method, _)| method),
        ),
        list(
            "Methods were tuned with different numbers of trials, which favours those with more",
            &trials,
        )
        .filter(|_| trials.len() > 1),
        list(
            "Diverged",
            diverged.map(|run| format!("{} seed {}", run.method.name, run.seed)),
        ),
    ];

    let data = differ(runs, |run| (run.rows, run.baseline.to_bits(), &run.metric));
    let machines = differ(runs, |run| {
        let environment = &run.environment;
        (&environment.device, environment.threads, &environment.cpu)
    });
    let kernels = differ(runs, |run| &run.environment.kernels);
    let versions = differ(runs, |run| {
        (
            &run.git.revision,
            &run.environment.burn,
            &run.environment.peft,
        )
    });
    let dirty = runs.iter().any(|run| run.git.dirty);
    let facts = [
        (
            data,
            "Runs differ in rows, metric or baseline score: they did not see the same data.",
        ),
        (
            machines,
            "Runs are from different machines or thread counts: do not compare times and memory.",
        ),
        (
            kernels,
            "Runs are from processors that sum in different orders: with the same seed their scores differ too.",
        ),
        (versions, "Runs are from different revisions or versions."),
        (
            dirty,
            "Some runs are from a tree with changes that are in no commit.",
        ),
    ];
    let facts = facts.into_iter().filter(|(holds, _)| *holds);
    lists
        .into_iter()
        .flatten()
        .chain(facts.map(|(_, sentence)| sentence.into()))
        .collect()
}

fn differ<'a, T: PartialEq>(runs: &[&'a RunRecord], key: impl Fn(&'a RunRecord) -> T) -> bool {
    runs.windows(2).any(|pair| key(pair[0]) != key(pair[1]))
}

/// `sentence: item, item.`, or nothing of no items.
fn list(sentence: &str, items: impl IntoIterator<Item: Display>) -> Option<String> {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    (!items.is_empty()).then(|| format!("{sentence}: {}.", items.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{HEAD_ONLY, Report, sample};

    fn sentences(records: &[RunRecord]) -> String {
        Report::new(records).groups[0].verdicts.join("\n")
    }

    #[test]
    fn it_says_what_does_not_beat_head_only() {
        let three = sentences(&sample::records(3));
        assert!(three.contains(
            "Do not beat head-only, the interval of the difference includes zero: bitfit ("
        ));
        assert!(three.contains("Do not beat head-only, they are worse: prompt-tuning (−"));
        let one = sentences(&sample::records(1));
        assert!(one.contains("Not a ranking") && one.contains("no evidence yet"));
        assert!(!one.contains("Beat head-only"));
    }

    #[test]
    fn a_diverged_head_only_leaves_nothing_to_beat() {
        let mut records = sample::records(3);
        records[0].test = f64::NAN;
        assert_eq!(records[0].method.name, HEAD_ONLY);
        let text = sentences(&records);
        assert!(text.contains("Not comparable with head-only") && !text.contains("Beat head-only"));
    }

    #[test]
    fn missing_references_are_said() {
        let records: Vec<_> = sample::records(3)
            .into_iter()
            .filter(|record| record.method.name != HEAD_ONLY)
            .collect();
        let text = sentences(&records);
        assert!(
            text.contains("Head-only, the frozen backbone, did not run")
                && text.contains("share of the gap needs")
        );
    }

    #[test]
    fn language_models_are_held_against_the_base_model() {
        let mut records = sample::language_model_records(3);
        let text = sentences(&records);
        assert!(text.contains("Beat base: ") && text.contains("Test perplexity"));
        assert!(text.contains("Forgetting, ") && !text.contains("majority"));
        assert!(Report::new(&records).groups[0].warnings.is_empty());
        records.retain(|record| record.method.name != BASE);
        assert!(sentences(&records).contains("The base model as it came did not run"));
    }

    #[test]
    fn a_winner_at_the_end_of_its_grid_is_pointed_out() {
        let ends = "a better one may lie beyond: lora.";
        let flat = "within a standard error of the dev score: bitfit.";
        let mut records = sample::records(1);
        let text = sentences(&records);
        assert!(!text.contains(ends) && !text.contains(flat));
        for record in &mut records {
            let inner = match record.method.name.as_str() {
                "lora" => record.dev - 0.1,
                "bitfit" => record.dev - 0.01,
                _ => continue,
            };
            record.learning_rate = record.tuning[2].learning_rate;
            (record.tuning[1].dev, record.tuning[2].dev) = (inner, record.dev);
        }
        let text = sentences(&records);
        assert!(text.contains(ends) && text.contains(flat), "{text}");
    }

    #[test]
    fn what_is_hard_to_compare_is_warned_of() {
        let mut records = sample::records(2);
        assert!(Report::new(&records).groups[0].warnings.is_empty());
        records[0].environment.threads = 8;
        records[0].environment.kernels = "avx2 fma avx512f".into();
        records[0].git.dirty = true;
        records[0].tuning.pop();
        records[1].definition_hash = "0".into();
        records[1].baseline = 0.6;
        let warnings = Report::new(&records).groups[0].warnings.join("\n");
        for expected in [
            "machines",
            "different orders",
            "no commit",
            "trials",
            "different definitions",
            "same data",
        ] {
            assert!(
                warnings.contains(expected),
                "{expected} is not in {warnings}"
            );
        }
    }
}

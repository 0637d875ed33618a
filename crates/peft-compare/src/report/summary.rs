//! Runs summarised over their seeds, and compared with each other.

use std::collections::BTreeMap;

use serde::Serialize;

use super::verdict::Verdict;
use super::{Axis, Costs, FULL, MIN_SEEDS, Search};
use crate::definition::Kind;
use crate::record::{Environment, Forgetting, Git, Method, Metric, Model, Rows, RunRecord};
use crate::statistics::{
    Estimate, is_on_front, paired_difference, paired_share_of_gap, rank_interval,
};

/// Runs that may be compared with each other: one suite, one task, one model.
#[derive(Serialize, Debug, Clone)]
pub struct Group {
    /// The suite.
    pub suite: String,
    /// The task.
    pub task: String,
    /// What it is about.
    pub kind: Kind,
    /// Name of the reference that trains least, which gains are measured from.
    pub baseline_method: &'static str,
    /// What the task shows and what it cannot.
    pub analysis: String,
    /// The model.
    pub model: Model,
    /// The metric.
    pub metric: Metric,
    /// Score that needs no training: of the majority class, or of the untrained language model.
    pub baseline: f64,
    /// Rows of each split.
    pub rows: Rows,
    /// The methods, best mean first.
    pub methods: Vec<MethodSummary>,
    /// What the runs show, in sentences.
    pub verdicts: Vec<String>,
    /// What makes the runs hard to compare, in sentences.
    pub warnings: Vec<String>,
    /// What ran on what.
    pub settings: Vec<Setting>,
}

/// A machine and a source revision, with the number of runs on them.
#[derive(Serialize, Debug, Clone, PartialEq)]
pub struct Setting {
    /// The machine and the versions.
    pub environment: Environment,
    /// The revision.
    pub git: Git,
    /// Runs of the group there.
    pub runs: usize,
}

/// One method over its seeds.
#[derive(Serialize, Debug, Clone)]
pub struct MethodSummary {
    /// The method, as in its latest run.
    pub method: Method,
    /// Test score; `None` when a seed diverged.
    pub test: Option<Estimate>,
    /// Rise of the loss on general text, in nats a token; language models only, `None` when a seed diverged.
    pub forgetting: Option<Estimate>,
    /// Gain over the baseline method, paired over seeds; positive is better whatever the metric.
    pub gain: Option<Estimate>,
    /// What `gain` allows to say.
    pub beats_baseline: Verdict,
    /// Share of the gap between the baseline method and full fine-tuning, over the seeds that all three have.
    pub share_of_gap: Option<f64>,
    /// Best and worst rank that the intervals allow: ranks of overlapping methods overlap. `None` without a ranking.
    pub rank_interval: Option<(usize, usize)>,
    /// What it costs.
    pub costs: Costs,
    /// The axes on which no other method has a mean as good for as little.
    pub pareto: Vec<Axis>,
    /// How its learning rate was chosen: one search for all seeds, as a rule.
    pub searches: Vec<Search>,
    /// Its runs, one per seed.
    pub runs: Vec<RunRecord>,
}

impl Group {
    /// Of the runs sorted by method, seed and time; `verdicts` and `warnings` are still empty.
    pub(super) fn new(runs: &[&RunRecord]) -> Self {
        // Of several runs of one seed the latest counts.
        let mut methods: BTreeMap<&str, BTreeMap<u64, &RunRecord>> = BTreeMap::new();
        for run in runs {
            methods
                .entry(&run.method.name)
                .or_default()
                .insert(run.seed, run);
        }
        let latest = runs
            .iter()
            .max_by_key(|run| &run.started_at)
            .expect("a group has a run");
        let mut group = Self {
            suite: latest.suite.clone(),
            task: latest.task.clone(),
            kind: latest.kind,
            baseline_method: latest.kind.baseline_method(),
            analysis: latest.task_analysis.trim().into(),
            model: latest.model.clone(),
            metric: latest.metric.clone(),
            baseline: latest.baseline,
            rows: latest.rows,
            methods: methods
                .into_values()
                .map(|seeds| MethodSummary::new(seeds.into_values().cloned().collect()))
                .collect(),
            verdicts: Vec::new(),
            warnings: Vec::new(),
            settings: settings(runs),
        };
        group.compare();
        group
    }

    /// The method of this name.
    pub fn method(&self, name: &str) -> Option<&MethodSummary> {
        self.methods
            .iter()
            .find(|summary| summary.method.name == name)
    }

    /// Fills what depends on the other methods, and sorts.
    fn compare(&mut self) {
        let scores = |name| self.method(name).map(|summary| self.seed_scores(summary));
        let (baseline, full) = (scores(self.baseline_method), scores(FULL));
        let compared: Vec<_> = self
            .methods
            .iter()
            .map(|summary| {
                let own = self.seed_scores(summary);
                let gain = baseline
                    .as_ref()
                    .and_then(|baseline| paired_difference(&own, baseline));
                let share = baseline
                    .as_ref()
                    .zip(full.as_ref())
                    .and_then(|(baseline, full)| paired_share_of_gap(&own, baseline, full));
                (
                    gain,
                    share,
                    self.rank_interval(summary),
                    self.pareto(summary),
                )
            })
            .collect();
        for (summary, (gain, share, rank_interval, pareto)) in self.methods.iter_mut().zip(compared)
        {
            let is_baseline = summary.method.name == self.baseline_method;
            summary.beats_baseline = Verdict::new(is_baseline, gain);
            summary.gain = gain.filter(|_| !is_baseline);
            (summary.share_of_gap, summary.rank_interval, summary.pareto) =
                (share, rank_interval, pareto);
        }
        let key = |summary: &MethodSummary| {
            summary
                .test
                .map_or(f64::NEG_INFINITY, |test| self.metric.oriented(test.mean))
        };
        self.methods.sort_by(|a, b| key(b).total_cmp(&key(a)));
    }

    fn seed_scores(&self, summary: &MethodSummary) -> Vec<(u64, f64)> {
        summary
            .runs
            .iter()
            .map(|run| (run.seed, self.metric.oriented(run.test)))
            .collect()
    }

    fn rank_interval(&self, summary: &MethodSummary) -> Option<(usize, usize)> {
        let ranked = |summary: &MethodSummary| {
            let test = summary.test.filter(|test| test.n >= MIN_SEEDS)?;
            Some(Estimate {
                mean: self.metric.oriented(test.mean),
                ..test
            })
        };
        let own = ranked(summary)?;
        let all: Vec<_> = self.methods.iter().filter_map(ranked).collect();
        (all.len() > 1).then(|| rank_interval(&own, &all))
    }

    fn pareto(&self, summary: &MethodSummary) -> Vec<Axis> {
        let point = |summary: &MethodSummary, axis: Axis| {
            Some((
                self.metric.oriented(summary.test?.mean),
                axis.of(&summary.costs)?,
            ))
        };
        let on_front = |axis: &Axis| {
            let points: Vec<_> = self
                .methods
                .iter()
                .filter_map(|other| point(other, *axis))
                .collect();
            point(summary, *axis).is_some_and(|own| is_on_front(own, &points))
        };
        Axis::of_kind(self.kind).filter(on_front).collect()
    }
}

impl MethodSummary {
    fn new(runs: Vec<RunRecord>) -> Self {
        let latest = runs
            .iter()
            .max_by_key(|run| &run.started_at)
            .expect("a method has a run");
        let scores: Vec<f64> = runs.iter().map(|run| run.test).collect();
        let rises: Option<Vec<f64>> = runs
            .iter()
            .map(|run| run.forgetting.map(Forgetting::change))
            .collect();
        Self {
            method: latest.method.clone(),
            test: Estimate::of(&scores),
            forgetting: rises.and_then(|rises| Estimate::of(&rises)),
            gain: None,
            beats_baseline: Verdict::Unknown,
            share_of_gap: None,
            rank_interval: None,
            costs: Costs::new(&runs),
            pareto: Vec::new(),
            searches: Search::of(&runs),
            runs,
        }
    }
}

fn settings(runs: &[&RunRecord]) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for run in runs {
        match settings
            .iter_mut()
            .find(|setting| setting.environment == run.environment && setting.git == run.git)
        {
            Some(setting) => setting.runs += 1,
            None => settings.push(Setting {
                environment: run.environment.clone(),
                git: run.git.clone(),
                runs: 1,
            }),
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{BASE, HEAD_ONLY, Report, sample};

    fn group(records: &[RunRecord]) -> Group {
        Report::new(records).groups.remove(0)
    }

    #[test]
    fn three_seeds_allow_verdicts_and_ranks() {
        let group = group(&sample::records(3));
        let verdict = |name| group.method(name).unwrap().beats_baseline;
        assert_eq!(verdict("lora"), Verdict::Beats);
        assert_eq!(verdict("bitfit"), Verdict::NotShown);
        assert_eq!(verdict("prompt-tuning"), Verdict::Worse);
        assert_eq!(verdict(HEAD_ONLY), Verdict::Reference);
        let (lora, houlsby) = (
            group.method("lora").unwrap(),
            group.method("houlsby").unwrap(),
        );
        assert!(
            houlsby.rank_interval.unwrap().0 <= lora.rank_interval.unwrap().1,
            "overlapping methods are not ranked apart"
        );
        assert_eq!(group.methods.last().unwrap().rank_interval, Some((8, 8)));
        assert!((group.method(FULL).unwrap().share_of_gap.unwrap() - 1.0).abs() < 1e-9);
        assert!(group.method(HEAD_ONLY).unwrap().share_of_gap.unwrap().abs() < 1e-9);
    }

    #[test]
    fn fewer_seeds_allow_neither() {
        for seeds in [1, 2] {
            let group = group(&sample::records(seeds));
            assert!(
                group
                    .methods
                    .iter()
                    .all(|summary| summary.rank_interval.is_none())
            );
            assert_eq!(
                group.method("lora").unwrap().beats_baseline,
                Verdict::TooFewSeeds
            );
        }
    }

    #[test]
    fn less_may_be_better() {
        let mut records = sample::records(3);
        for record in &mut records {
            record.metric = Metric {
                name: "loss".into(),
                higher_is_better: false,
            };
            record.test = 1.0 - record.test;
        }
        let (loss, accuracy) = (group(&records), group(&sample::records(3)));
        for (a, b) in loss.methods.iter().zip(&accuracy.methods) {
            assert_eq!(
                (&a.method.name, a.rank_interval, &a.pareto),
                (&b.method.name, b.rank_interval, &b.pareto)
            );
            assert_eq!(a.beats_baseline, b.beats_baseline);
        }
    }

    #[test]
    fn language_models_are_ranked_by_the_lowest_loss() {
        let group = group(&sample::language_model_records(3));
        let names: Vec<_> = group
            .methods
            .iter()
            .map(|summary| summary.method.name.as_str())
            .collect();
        assert_eq!(names, [FULL, "lora", BASE]);
        assert_eq!(group.baseline_method, BASE);
        let [full, lora, base] = [0, 1, 2].map(|index| &group.methods[index]);
        assert_eq!(
            (full.rank_interval, base.rank_interval),
            (Some((1, 1)), Some((3, 3)))
        );
        assert_eq!(lora.beats_baseline, Verdict::Beats);
        assert_eq!(base.beats_baseline, Verdict::Reference);
        assert!(lora.gain.unwrap().mean > 0.0, "a lower loss is a gain");
        // (base - lora) / (base - full), over means.
        let loss = |summary: &MethodSummary| summary.test.unwrap().mean;
        let share = (loss(base) - loss(lora)) / (loss(base) - loss(full));
        assert!((lora.share_of_gap.unwrap() - share).abs() < 1e-9);
        assert!((full.share_of_gap.unwrap() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn forgetting_is_an_axis_of_language_models_alone() {
        let group = group(&sample::language_model_records(3));
        let front = |name| {
            group
                .method(name)
                .unwrap()
                .pareto
                .contains(&Axis::Forgetting)
        };
        assert!(front(BASE), "forgets nothing");
        assert!(front("lora") && front(FULL), "better for more");
        let rise = |name| group.method(name).unwrap().forgetting.unwrap();
        assert!(rise(FULL).mean > rise("lora").mean && rise(BASE).mean.abs() < 1e-12);
        assert_eq!(rise("lora").n, 3);

        let encoders = self::group(&sample::records(3));
        for summary in &encoders.methods {
            assert!(summary.forgetting.is_none() && !summary.pareto.contains(&Axis::Forgetting));
        }
    }

    #[test]
    fn a_front_has_no_dominated_method() {
        let group = group(&sample::records(1));
        let on_front = |name| {
            group
                .method(name)
                .unwrap()
                .pareto
                .contains(&Axis::Parameters)
        };
        assert!(on_front(HEAD_ONLY), "nothing is cheaper");
        assert!(on_front("full"), "nothing is better");
        assert!(!on_front("prompt-tuning"), "worse than head-only for more");
    }

    #[test]
    fn the_latest_run_of_a_seed_counts() {
        let mut records = sample::records(1);
        let mut again = records[0].clone();
        (again.id, again.started_at, again.test) =
            ("ff".into(), "2027-01-01T00:00:00Z".into(), 0.123);
        records.insert(0, again);
        let group = group(&records);
        let summary = group.method(&records[0].method.name).unwrap();
        assert_eq!((summary.runs.len(), summary.runs[0].test), (1, 0.123));
        assert!(
            group
                .warnings
                .iter()
                .any(|warning| warning.contains("twice"))
        );
    }

    #[test]
    fn a_diverged_seed_has_no_mean() {
        let mut records = sample::records(3);
        let diverged = records
            .iter_mut()
            .find(|record| record.method.name == "lora")
            .unwrap();
        diverged.test = f64::NAN;
        let group = group(&records);
        assert_eq!(group.methods.last().unwrap().method.name, "lora");
        assert_eq!(
            group.method("lora").unwrap().beats_baseline,
            Verdict::Unknown
        );
        assert!(
            group
                .verdicts
                .iter()
                .any(|verdict| verdict.contains("diverged"))
        );
    }
}

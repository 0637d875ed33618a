//! The grids around the best learning rates, as lines for `tasks.toml`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::record::{Place, RunRecord, Trial};

/// For each task a table `[task.learning_rates]`: of each method the best rate between its neighbours among those that
/// were tried, and behind it all that was tried with its score on dev. A method whose best rate lies at an end has no
/// line but a comment: where its grid should lie is not known.
pub fn grids(records: &[RunRecord]) -> String {
    let mut tasks: BTreeMap<_, BTreeMap<&str, &RunRecord>> = BTreeMap::new();
    for run in records.iter().filter(|run| !run.tuning.is_empty()) {
        let task = (&run.task, &run.model.name, run.metric.name.as_str());
        let methods = tasks.entry(task).or_default();
        // All seeds carry the search of the first one.
        methods.entry(&run.method.name).or_insert(run);
    }
    let mut text = String::new();
    for ((task, model, metric), methods) in tasks {
        let _ = writeln!(
            text,
            "# Task {task}, {model}: rates tried, and their {metric} on dev.\n[task.learning_rates]"
        );
        for (name, run) in methods {
            text.push_str(&line(name, run));
        }
    }
    text
}

fn line(name: &str, run: &RunRecord) -> String {
    let mut trials: Vec<&Trial> = run.tuning.iter().collect();
    trials.sort_by(|a, b| a.learning_rate.total_cmp(&b.learning_rate));
    let score = |trial: &&Trial| {
        let dev = if trial.dev.is_finite() {
            format!("{:.4}", trial.dev)
        } else {
            "diverged".into()
        };
        format!("{:e}: {dev}", trial.learning_rate)
    };
    let tried: Vec<String> = trials.iter().map(score).collect();
    let tried = tried.join(", ");
    let won = |trial: &&Trial| trial.learning_rate.total_cmp(&run.learning_rate).is_eq();
    match (trials.iter().position(won), run.place()) {
        (Some(at), Some(Place::Inside)) => {
            let [low, best, high] = [at - 1, at, at + 1].map(|at| trials[at].learning_rate);
            format!("{name} = [{low:e}, {best:e}, {high:e}]  # {tried}\n")
        }
        (_, Some(place)) => format!("# {name}: {}: {tried}\n", place.words()),
        _ => format!("# {name}: too few: {tried}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn tuned(name: &str, seed: u64, winner: f64, scores: &[(f64, f64)]) -> RunRecord {
        let mut run = sample::record(name, seed);
        run.learning_rate = winner;
        run.tuning = scores
            .iter()
            .map(|(learning_rate, dev)| Trial {
                learning_rate: *learning_rate,
                dev: *dev,
                error: None,
            })
            .collect();
        run
    }

    #[test]
    fn a_grid_is_the_winner_between_its_neighbours() {
        let inside = [(1e-3, 0.6), (3e-3, 0.7), (1e-2, 0.8), (3.3e-2, f64::NAN)];
        let at_end = [(1e-3, 0.2), (3e-3, 0.5), (1e-2, 0.8)];
        let text = grids(&[
            tuned("lora", 1, 1e-2, &inside),
            tuned("lora", 2, 1e-2, &inside),
            tuned("bitfit", 1, 1e-2, &at_end),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "[task.learning_rates]");
        assert_eq!(
            lines[2],
            "# bitfit: high end: 1e-3: 0.2000, 3e-3: 0.5000, 1e-2: 0.8000"
        );
        assert_eq!(
            lines[3],
            "lora = [3e-3, 1e-2, 3.3e-2]  # 1e-3: 0.6000, 3e-3: 0.7000, 1e-2: 0.8000, 3.3e-2: diverged"
        );
        assert_eq!(lines.len(), 4, "one line a method, not one a seed");
        let table: toml::Table = text.parse().unwrap();
        let rates = table["task"]["learning_rates"]["lora"].as_array().unwrap();
        assert_eq!(rates[2].as_float(), Some(3.3e-2));
    }
}

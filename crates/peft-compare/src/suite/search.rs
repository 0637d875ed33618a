//! The search for a method's learning rate: what was tried, which is best, and what to try next.

use crate::definition::MOST_TRIALS;
use crate::job::Outcome;
use crate::record::{Metric, Trial};

/// The learning rates of one method on one task that were tried with the first seed.
pub(super) struct Search {
    metric: Metric,
    /// Rising.
    trials: Vec<Trial>,
    /// Of the trials that ended, in the order of their rates.
    outcomes: Vec<Outcome>,
}

impl Search {
    pub(super) fn new(metric: Metric) -> Self {
        Self {
            metric,
            trials: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    pub(super) fn finished(&mut self, outcome: Outcome) {
        self.add(Trial {
            learning_rate: outcome.job.learning_rate,
            dev: outcome.dev,
            error: None,
        });
        self.outcomes.push(outcome);
        let rate = |outcome: &Outcome| outcome.job.learning_rate;
        self.outcomes.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
    }

    pub(super) fn failed(&mut self, learning_rate: f64, error: String) {
        self.add(Trial {
            learning_rate,
            dev: f64::NAN,
            error: Some(error),
        });
    }

    fn add(&mut self, trial: Trial) {
        self.trials.push(trial);
        self.trials
            .sort_by(|a, b| a.learning_rate.total_cmp(&b.learning_rate));
    }

    pub(super) fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// The outcome with the best score on dev; if all diverged, the first. `None` if nothing ended.
    pub(super) fn best(&self) -> Option<&Outcome> {
        let scores = self.outcomes.iter().map(|outcome| outcome.dev);
        self.outcomes.get(best(&self.metric, scores).unwrap_or(0))
    }

    /// The rate to try next: as far beyond the end at which the best lies as that end is from its neighbour. `None` if
    /// the best lies inside, if no rate has a score, or if [`MOST_TRIALS`] were tried.
    pub(super) fn beyond(&self) -> Option<f64> {
        let rates: Vec<f64> = self
            .trials
            .iter()
            .map(|trial| trial.learning_rate)
            .collect();
        let scores = self.trials.iter().map(|trial| trial.dev);
        let last = rates.len().checked_sub(1).filter(|last| *last > 0)?;
        let (end, neighbour) = match best(&self.metric, scores)? {
            _ if rates.len() >= MOST_TRIALS => return None,
            0 => (rates[0], rates[1]),
            at if at == last => (rates[last], rates[last - 1]),
            _ => return None,
        };
        // Two digits: 1e-2 after 3e-3 is followed by 3.3e-2.
        format!("{:.1e}", end * (end / neighbour)).parse().ok()
    }
}

/// The index of the best score; of equals the first, which has the smaller rate. Scores that are no numbers do not
/// count.
fn best(metric: &Metric, scores: impl Iterator<Item = f64>) -> Option<usize> {
    let numbers = scores
        .map(|score| metric.oriented(score))
        .enumerate()
        .filter(|(_, score)| score.is_finite());
    let better = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
    numbers.reduce(better).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::Kind;

    fn search(kind: Kind, scores: &[(f64, f64)]) -> Search {
        let mut search = Search::new(kind.metric());
        for (learning_rate, dev) in scores {
            search.add(Trial {
                learning_rate: *learning_rate,
                dev: *dev,
                error: None,
            });
        }
        search
    }

    #[test]
    fn the_next_rate_lies_beyond_the_end_at_which_the_best_is() {
        let next = |scores: &[(f64, f64)]| search(Kind::Classification, scores).beyond();
        assert_eq!(next(&[(1e-3, 0.7), (3e-3, 0.8), (1e-2, 0.9)]), Some(3.3e-2));
        assert_eq!(next(&[(1e-3, 0.9), (3e-3, 0.8), (1e-2, 0.7)]), Some(3.3e-4));
        assert_eq!(next(&[(1e-3, 0.7), (3e-3, 0.8), (1e-2, 0.7)]), None);
        // What broke down counts as tried, in whichever order it came.
        assert_eq!(
            next(&[(3e-3, 0.8), (1e-3, 0.7), (1e-2, f64::NAN)]),
            None,
            "the middle one is the best"
        );
        // Of equals the smaller wins, so it must have a smaller neighbour.
        assert_eq!(next(&[(1e-3, 0.9), (3e-3, 0.9), (1e-2, 0.7)]), Some(3.3e-4));
        assert_eq!(next(&[(1e-3, 0.9)]), None, "nothing says how far");
        assert_eq!(next(&[(1e-3, f64::NAN), (3e-3, f64::NAN)]), None);
    }

    #[test]
    fn of_a_loss_the_lowest_is_best() {
        let next = |scores: &[(f64, f64)]| search(Kind::LanguageModel, scores).beyond();
        assert_eq!(next(&[(1e-3, 3.3), (3e-3, 3.2), (1e-2, 3.4)]), None);
        assert_eq!(next(&[(1e-3, 3.1), (3e-3, 3.2), (1e-2, 3.4)]), Some(3.3e-4));
    }

    #[test]
    fn the_search_ends() {
        let mut rising = search(Kind::Classification, &[(1e-3, 0.1), (3e-3, 0.2)]);
        let mut dev = 0.2;
        while let Some(learning_rate) = rising.beyond() {
            dev += 0.1;
            rising.add(Trial {
                learning_rate,
                dev,
                error: None,
            });
        }
        assert_eq!(rising.trials().len(), MOST_TRIALS);
    }
}

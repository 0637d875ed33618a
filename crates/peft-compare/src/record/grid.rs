//! The learning rates that a method is tried with, where they come from, and where in them the winner lies.

use serde::{Deserialize, Serialize};

use super::Trial;

/// The learning rates of one method on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// Who says so.
    pub source: GridSource,
    /// The task's `learning_rate_factor`, which the method's or the family's rates were multiplied by. It is 1 where
    /// the task has rates of its own.
    pub factor: f64,
    /// The rates, rising.
    pub learning_rates: Vec<f64>,
}

/// Where the rates come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GridSource {
    /// The task has rates for this method: they were found on its own dev split.
    Task,
    /// The method's entry.
    Method,
    /// The method's family, because the method has no entry.
    Family,
}

impl Grid {
    /// One line for people, such as `of the method, times 3`.
    pub fn origin(&self) -> String {
        let source = match self.source {
            GridSource::Task => "of the task",
            GridSource::Method => "of the method",
            GridSource::Family => "of the family",
        };
        if self.factor.total_cmp(&1.0).is_eq() {
            source.into()
        } else {
            format!("{source}, times {}", self.factor)
        }
    }
}

/// Where in its grid the winner lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A smaller and a larger rate were tried, and neither is better.
    Inside,
    /// It is the smallest rate.
    LowEnd,
    /// It is the largest rate.
    HighEnd,
    /// It is the smallest or the largest rate. But a rate inside the grid is as good, but for the chance in the choice
    /// of dev rows.
    Flat,
}

impl Place {
    /// The place of `winner` among `trials`. `None` where fewer than three rates were tried: then there is no inside.
    ///
    /// `noise` is the standard error of a dev score, where it is known.
    pub fn of(winner: f64, trials: &[Trial], noise: Option<f64>) -> Option<Self> {
        if trials.len() < 3 {
            return None;
        }
        let tried =
            |keep: &dyn Fn(f64) -> bool| trials.iter().any(|trial| keep(trial.learning_rate));
        let below = |rate: f64| tried(&|other| other < rate);
        let above = |rate: f64| tried(&|other| other > rate);
        let won = trials
            .iter()
            .find(|trial| trial.learning_rate.total_cmp(&winner).is_eq())?;
        let as_good =
            |trial: &Trial| noise.is_some_and(|noise| (trial.dev - won.dev).abs() <= noise);
        let mut inner = trials
            .iter()
            .filter(|trial| below(trial.learning_rate) && above(trial.learning_rate));
        Some(match (below(winner), above(winner)) {
            (true, true) => Self::Inside,
            _ if inner.any(as_good) => Self::Flat,
            (false, _) => Self::LowEnd,
            (true, false) => Self::HighEnd,
        })
    }

    /// In words, for tables.
    pub fn words(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::LowEnd => "low end",
            Self::HighEnd => "high end",
            Self::Flat => "end, but flat",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trials(scores: &[f64]) -> Vec<Trial> {
        let rates = [1e-3, 3e-3, 1e-2];
        let trials = rates.iter().zip(scores);
        trials
            .map(|(rate, dev)| Trial {
                learning_rate: *rate,
                dev: *dev,
                error: None,
            })
            .collect()
    }

    #[test]
    fn a_winner_is_inside_at_an_end_or_on_flat_ground() {
        let noise = Some(0.015);
        let place = |winner, scores: &[f64], noise| Place::of(winner, &trials(scores), noise);
        assert_eq!(place(3e-3, &[0.8, 0.9, 0.8], noise), Some(Place::Inside));
        assert_eq!(place(1e-2, &[0.8, 0.85, 0.9], noise), Some(Place::HighEnd));
        assert_eq!(place(1e-3, &[0.9, 0.85, 0.8], noise), Some(Place::LowEnd));
        assert_eq!(place(1e-2, &[0.8, 0.89, 0.9], noise), Some(Place::Flat));
        assert_eq!(place(1e-2, &[0.8, 0.89, 0.9], None), Some(Place::HighEnd));
        // What diverged was tried: the winner has a neighbour there.
        assert_eq!(
            place(3e-3, &[0.8, 0.9, f64::NAN], noise),
            Some(Place::Inside)
        );
        assert_eq!(
            place(3e-3, &[0.8, 0.9], noise),
            None,
            "two rates have no inside"
        );
        assert_eq!(
            place(5e-3, &[0.8, 0.9, 0.8], noise),
            None,
            "not one of the trials"
        );
    }

    #[test]
    fn an_origin_is_said_in_words() {
        let grid = |source, factor| Grid {
            source,
            factor,
            learning_rates: vec![1e-3],
        };
        assert_eq!(grid(GridSource::Task, 1.0).origin(), "of the task");
        assert_eq!(
            grid(GridSource::Family, 3.0).origin(),
            "of the family, times 3"
        );
    }
}

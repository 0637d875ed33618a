//! The state of a run, without the trained values: step, losses, best evaluation.

use peft_models::Moment;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::TrainConfig;
use crate::inputs::Inputs;
use crate::outcome::{Ending, Evaluation, FailedSave, TrainOutcome};

/// Version of the file.
const VERSION: u32 = 1;
/// The way out where a run cannot go on as it was.
const ANEW: &str = "to train on with this, load the adapter that the checkpoint holds with `load_adapter` and \
                    start a new run from it";

/// All of a run that is neither model nor optimizer. The order of the rows, the learning rate and the
/// seeds of dropout follow from the step and the configuration, so there is no more to keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// Steps done.
    pub(crate) step: usize,
    /// Steps in all.
    steps: usize,
    /// Whether the held-out loss ended the run.
    pub(crate) early_stopped: bool,
    /// Evaluations in a row without a lower loss.
    pub(crate) stale: usize,
    pub(crate) losses: Vec<f64>,
    pub(crate) evaluations: Vec<Evaluation>,
    pub(crate) best: Option<Evaluation>,
    pub(crate) tokens: usize,
    pub(crate) seconds: f64,
    /// Checkpoints that could not be written.
    #[serde(default)]
    pub(crate) failed_saves: Vec<FailedSave>,
    config: TrainConfig,
    inputs: Inputs,
}

impl State {
    /// Before the first step.
    pub(crate) fn new(config: &TrainConfig, steps: usize, inputs: Inputs) -> Self {
        Self {
            version: VERSION,
            step: 0,
            steps,
            early_stopped: false,
            stale: 0,
            losses: Vec::new(),
            evaluations: Vec::new(),
            best: None,
            tokens: 0,
            seconds: 0.0,
            failed_saves: Vec::new(),
            config: config.clone(),
            inputs,
        }
    }

    /// Steps in all.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// Why this run, told by a state before its first step, cannot go on from `saved`; none if it can.
    ///
    /// Settings that only say when something is written may differ, and so may the time as long as the data do
    /// not.
    pub(crate) fn conflict(&self, saved: &Self) -> Option<String> {
        if saved.version != VERSION {
            let found = saved.version;
            return Some(format!(
                "its format is version {found}; this reads {VERSION}"
            ));
        }
        let fields = |config: &TrainConfig| {
            let config = TrainConfig {
                save_every: None,
                keep_last: 1,
                time: saved.config.time,
                ..config.clone()
            };
            serde_json::to_value(config).expect("a configuration is JSON")
        };
        let (ours, theirs) = (fields(&self.config), fields(&saved.config));
        let mut names = ours.as_object().into_iter().flat_map(Map::keys);
        if let Some(name) = names.find(|name| ours[*name] != theirs[*name]) {
            return Some(format!(
                "that run has {} for `{name}`, this one {}; use the same configuration to go on; {ANEW}",
                theirs[name], ours[name]
            ));
        }
        if let Some(reason) = self.inputs.conflict(&saved.inputs) {
            return Some(reason);
        }
        let what = self.inputs.other_data(&saved.inputs)?;
        let (began, time) = (saved.config.time, self.config.time);
        let hint = if began == time {
            String::new()
        } else {
            format!(
                "; if the chat template writes the time, give the configuration the run's, {began}, as \
                 `checkpoint::time` does"
            )
        };
        Some(format!(
            "that run had other {what} data; use the same files in the same order to go on{hint}; {ANEW}"
        ))
    }

    /// When the run began.
    pub(crate) fn time(&self) -> Moment {
        self.config.time
    }

    /// Whether there are values of a best evaluation, which the run ends with.
    pub(crate) fn keeps_best(&self) -> bool {
        self.config.keep_best && self.best.is_some()
    }

    /// Takes an evaluation in; true if it is the best so far.
    pub(crate) fn evaluated(&mut self, evaluation: Evaluation) -> bool {
        let best = self.best.is_none_or(|best| evaluation.nll < best.nll);
        if best {
            self.best = Some(evaluation);
            self.stale = 0;
        } else {
            self.stale += 1;
        }
        let patience = self.config.early_stopping_patience;
        self.early_stopped = patience.is_some_and(|patience| self.stale >= patience);
        self.evaluations.push(evaluation);
        best
    }

    /// The outcome as of now.
    pub(crate) fn outcome(self, peak_rss: u64) -> TrainOutcome {
        let ending = if self.step >= self.steps {
            Ending::Finished
        } else if self.early_stopped {
            Ending::EarlyStopped
        } else {
            Ending::Stopped
        };
        TrainOutcome {
            steps: self.step,
            ending,
            losses: self.losses,
            evaluations: self.evaluations,
            best: self.best,
            tokens: self.tokens,
            seconds: self.seconds,
            failed_saves: self.failed_saves,
            peak_rss,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(config: &TrainConfig) -> State {
        State::new(config, 10, Inputs::default())
    }

    #[test]
    fn what_decides_the_numbers_must_agree() {
        let config = TrainConfig::new();
        let saved = state(&config);
        let other = config.clone().with_save_every(3).with_keep_last(7);
        assert_eq!(state(&other).conflict(&saved), None);
        let other = config.clone().with_learning_rate(1e-3);
        let conflict = state(&other).conflict(&saved).unwrap();
        for part in ["learning_rate", "0.0002", "`load_adapter`"] {
            assert!(conflict.contains(part), "{conflict}");
        }
        // The time decides nothing by itself.
        let other = config.clone().with_time("2001-01-01".parse().unwrap());
        assert_eq!(state(&other).conflict(&saved), None);
        let version = State {
            version: VERSION + 1,
            ..saved
        };
        let conflict = state(&config).conflict(&version).unwrap();
        assert!(conflict.contains("version"), "{conflict}");
    }

    #[test]
    fn patience_counts_evaluations_in_a_row() {
        let config = TrainConfig::new().with_early_stopping_patience(2);
        let mut state = state(&config);
        let mut tell = |step, nll| {
            let targets = 5;
            let best = state.evaluated(Evaluation { step, nll, targets });
            (best, state.early_stopped)
        };
        assert_eq!(tell(1, 3.0), (true, false));
        assert_eq!(tell(2, 3.0), (false, false));
        assert_eq!(tell(3, 2.0), (true, false));
        assert_eq!(tell(4, 2.5), (false, false));
        assert_eq!(tell(5, 2.4), (false, true));
        assert_eq!(state.best.unwrap().step, 3);
        let outcome = state.clone().outcome(0);
        assert_eq!(outcome.ending, Ending::EarlyStopped);
        assert_eq!(outcome.evaluations.len(), 5);
        state.step = 10;
        assert_eq!(state.outcome(0).ending, Ending::Finished);
    }
}

//! The result of a run.

use serde::{Deserialize, Serialize};

/// A measurement on held-out data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// Steps that the model was trained for.
    pub step: usize,
    /// Mean negative log likelihood of a token, in nats.
    pub nll: f64,
    /// Tokens that were predicted.
    pub targets: usize,
}

impl Evaluation {
    /// e to the mean negative log likelihood: how many tokens the model hesitates between.
    pub fn perplexity(&self) -> f64 {
        self.nll.exp()
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ending {
    /// All steps are done.
    Finished,
    /// The held-out loss fell no more.
    EarlyStopped,
    /// The observer asked for it; the run can go on from its last checkpoint.
    Stopped,
    /// An error ended it: [`Interrupted`](crate::Interrupted).
    Failed,
}

/// A checkpoint that could not be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FailedSave {
    /// Steps done.
    pub step: usize,
    /// Why not.
    pub reason: String,
}

/// What came out of a run, earlier parts of it included where it went on from a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrainOutcome {
    /// Steps done.
    pub steps: usize,
    /// Why there were no more.
    pub ending: Ending,
    /// Mean negative log likelihood of the tokens of each step, in nats, before that step.
    pub losses: Vec<f64>,
    /// Measurements on the held-out data, in order.
    pub evaluations: Vec<Evaluation>,
    /// The one with the lowest loss; none without held-out data.
    pub best: Option<Evaluation>,
    /// Tokens read in training, without padding.
    pub tokens: usize,
    /// Seconds of training, evaluations included, checkpoints not.
    pub seconds: f64,
    /// Checkpoints that could not be written while the run went on.
    #[serde(default)]
    pub failed_saves: Vec<FailedSave>,
    /// The highest number of resident bytes during this part of the run; 0 where it cannot be read.
    pub peak_rss: u64,
}

impl TrainOutcome {
    /// Of a run that did not begin.
    pub(crate) fn none() -> Self {
        Self {
            steps: 0,
            ending: Ending::Failed,
            losses: Vec::new(),
            evaluations: Vec::new(),
            best: None,
            tokens: 0,
            seconds: 0.0,
            failed_saves: Vec::new(),
            peak_rss: 0,
        }
    }
}

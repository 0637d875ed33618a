//! Events of a run, for its observer.

use std::path::PathBuf;

use crate::outcome::Evaluation;

/// What just happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Training begins.
    Start {
        /// Steps in all.
        steps: usize,
        /// Steps done before, where the run goes on from a checkpoint.
        done: usize,
    },
    /// A step is done.
    Step(StepReport),
    /// The held-out data were measured.
    Evaluated {
        /// The measurement.
        evaluation: Evaluation,
        /// Whether it is the best so far.
        best: bool,
    },
    /// A checkpoint is on the disk.
    Saved {
        /// Its folder.
        path: PathBuf,
    },
    /// A checkpoint could not be written: the disk is full, say. The run goes on with those that are there,
    /// and tries again at its next checkpoint. Of the last one nothing is told: its error ends the run.
    SaveFailed {
        /// Steps done.
        step: usize,
        /// Why not.
        reason: String,
    },
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Number of the step, counted from 1.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Epoch that it belongs to, counted from 1.
    pub epoch: usize,
    /// Mean negative log likelihood of its tokens, in nats, before the step.
    pub loss: f64,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Common norm of the gradients, before clipping.
    pub gradient_norm: f64,
    /// Tokens that it read, without padding.
    pub tokens: usize,
    /// Seconds that it took.
    pub seconds: f64,
    /// Resident bytes after it; 0 where they cannot be read.
    pub resident: u64,
}

/// What an observer wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Control {
    /// Going on.
    #[default]
    Continue,
    /// An end after the step at hand, with a checkpoint.
    Stop,
}

//! The error of a run, which gives the model back.

use std::error::Error as StdError;
use std::fmt::{self, Debug, Display, Formatter};

use crate::Error;
use crate::outcome::TrainOutcome;

/// A run that an error ended, with all that was learned until then.
///
/// It is an error like others: `?` takes it, into an [`Error`] too, and drops the model. To keep that:
///
/// ```no_run
/// # use peft_core::PeftModule as _;
/// # use peft_train::{Dataset, Interrupted, Trainer};
/// # fn run(mut trainer: Trainer, model: peft_models::Llama, data: Dataset)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// match trainer.train(model, &data, None) {
///     Ok((model, _)) => model.save_adapter("mine", "adapter")?,
///     Err(Interrupted { model, outcome, source, .. }) => {
///         eprintln!("after {} steps: {source}", outcome.steps);
///         model.save_adapter("mine", "adapter-so-far")?;
///     }
/// }
/// # Ok(()) }
/// ```
#[non_exhaustive]
pub struct Interrupted<M> {
    /// The model. Where a step went wrong it is as it was before that step, after all steps before. Where the run
    /// did not begin it is as it was given.
    pub model: M,
    /// The model of the evaluation with the lowest held-out loss, with `keep_best` and after an evaluation.
    pub best: Option<M>,
    /// What came out so far. Its ending is `Failed`, unless all that went wrong is the last checkpoint.
    pub outcome: Box<TrainOutcome>,
    /// What went wrong.
    pub source: Error,
}

impl<M> Interrupted<M> {
    /// Before the first step.
    pub(crate) fn at_start(model: M, source: Error) -> Self {
        Self {
            model,
            best: None,
            outcome: Box::new(TrainOutcome::none()),
            source,
        }
    }
}

impl<M> Display for Interrupted<M> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.source, formatter)
    }
}

// What `main` prints of it: not the model.
impl<M> Debug for Interrupted<M> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Interrupted")
            .field("steps", &self.outcome.steps)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl<M> StdError for Interrupted<M> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // Its text is that of `self.source` already.
        self.source.source()
    }
}

impl<M> From<Interrupted<M>> for Error {
    fn from(interrupted: Interrupted<M>) -> Self {
        interrupted.source
    }
}

//! What a run carries from step to step, besides the model.

use std::time::Instant;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use peft_core::{LayerGroups, TrainingHooks};

use crate::event::StepReport;
use crate::interrupted::Interrupted;
use crate::model::CausalLm;
use crate::optimizer::AdamW;
use crate::outcome::Ending;
use crate::output::Output;
use crate::plan::Plan;
use crate::state::State;
use crate::tensors::Tensors;
use crate::{Error, memory, trained};

pub(crate) struct Run {
    /// Where checkpoints go, if anywhere.
    pub(crate) output: Option<Output>,
    /// Steps that are in a checkpoint.
    pub(crate) saved: usize,
    pub(crate) optimizer: AdamW,
    /// Of which more and more train, with gradual unfreezing.
    pub(crate) groups: Option<LayerGroups>,
    /// What the adapters' methods do besides being trained.
    pub(crate) training: TrainingHooks,
    pub(crate) state: State,
    /// Values of the best evaluation, with `keep_best`.
    pub(crate) best: Option<Tensors>,
    pub(crate) plan: Plan,
    /// The model's, for seeds.
    pub(crate) device: Device,
    /// The rows of `epoch`, in its order.
    pub(crate) order: Vec<usize>,
    pub(crate) epoch: Option<usize>,
}

/// What is known of a step before it changes the model.
pub(crate) struct Learned {
    pub(crate) gradients: GradientsParams,
    pub(crate) start: Instant,
    /// Without the time that it took.
    pub(crate) report: StepReport,
}

impl Run {
    /// Lets go of what the model no longer has, after a step from which on a method trains other parameters: moments of
    /// those that are gone, and the values of the best evaluation, which do not fit any more.
    pub(crate) fn keep_up<M: Module>(&mut self, model: &M) {
        let paths = trained::paths(model);
        if !self.optimizer.retain(&paths) {
            return;
        }
        if self.groups.is_some() {
            self.groups = Some(LayerGroups::new(model));
        }
        let best = self.best.as_ref();
        if best.is_some_and(|best| trained::fit(model, best).is_err()) {
            self.best = None;
            self.state.best = None;
        }
    }

    /// What is left of the run after an error, with that ending or its own.
    pub(crate) fn interrupted<M: CausalLm>(
        self,
        model: M,
        ending: Option<Ending>,
        source: Error,
    ) -> Interrupted<M> {
        let best = self.best.map(|best| {
            let best = trained::restored(model.clone(), &best);
            best.expect("the values are this model's")
        });
        let mut outcome = self.state.outcome(memory::peak());
        outcome.ending = ending.unwrap_or(outcome.ending);
        Interrupted {
            model,
            best,
            outcome: Box::new(outcome),
            source,
        }
    }
}

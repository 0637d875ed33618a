//! The training loop for causal language models.

use std::path::PathBuf;
use std::time::Instant;

use burn::module::ParamGroup;
use burn::optim::{GradientsAccumulator, GradientsParams};
use peft_core::LayerGroups;

use crate::check::check;
use crate::consistency::twice;
use crate::data::Dataset;
use crate::evaluate::measure;
use crate::event::{Control, Event, StepReport};
use crate::gradients::clip_by_norm;
use crate::inputs::Inputs;
use crate::interrupted::Interrupted;
use crate::model::CausalLm;
use crate::optimizer::AdamW;
use crate::outcome::{Ending, FailedSave, TrainOutcome};
use crate::output::Output;
use crate::plan::{Plan, mix};
use crate::run::{Learned, Run};
use crate::state::State;
use crate::{Error, Result, TrainConfig, checkpoint, memory, trained};

/// Who is told of a run.
type Observer<'a> = Box<dyn FnMut(&Event) -> Control + 'a>;

/// Trains a causal language model.
///
/// A step adds up the gradients of its micro-batches, each token counting the same, clips them by their
/// common norm and lets AdamW take them. Order of the rows, dropout and learning rate follow from the
/// step's number and the configuration, so a run that goes on from a checkpoint computes what it would
/// have computed anyway.
///
/// Dropout draws from the device's generator, and all CPU devices of a process have one. Runs with dropout that are
/// to be repeatable are therefore not run at the same time in two threads of one process, nor beside anything else
/// that draws there; in two processes they may.
pub struct Trainer<'a> {
    config: TrainConfig,
    output: Option<PathBuf>,
    resume: Option<PathBuf>,
    rates: Vec<(ParamGroup, f64)>,
    observer: Option<Observer<'a>>,
}

impl<'a> Trainer<'a> {
    /// With checked settings.
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub fn new(config: TrainConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            config,
            output: None,
            resume: None,
            rates: Vec::new(),
            observer: None,
        })
    }

    /// Writes checkpoints into `dir`, one at the end at least, and one where a step goes wrong, of the steps before
    /// it. Without it none are written. The folder may hold checkpoints only of the run that is gone on with, and
    /// none of later steps; it is locked as long as the run writes there.
    ///
    /// A checkpoint that cannot be written, because the disk is full, say, ends no run: the observer is told, and
    /// the next one is tried. The error of the last one comes back with the model.
    #[must_use]
    pub fn with_output(mut self, dir: impl Into<PathBuf>) -> Self {
        self.output = Some(dir.into());
        self
    }

    /// Goes on from the checkpoint in that folder: a `checkpoint-<step>`, or the newest of the output
    /// folder by [`checkpoint::latest`]. Attach the adapter to the same base model as for the first part
    /// of the run, packed the same, with the same name and configuration: its values come from the
    /// checkpoint.
    #[must_use]
    pub fn with_resume(mut self, checkpoint: impl Into<PathBuf>) -> Self {
        self.resume = Some(checkpoint.into());
        self
    }

    /// Gives the parameters of `group` the learning rate times `factor`: for LoRA+, the group of the B
    /// factors and 16. Where groups overlap, the one given last holds. A factor is a number, at least 0.
    ///
    /// Methods that change what they train in the middle (LT-SFT, FAR, `DiffPruning`) make new parameters then, with ids of
    /// their own: a group of ids does not hold for these.
    #[must_use]
    pub fn with_rate(mut self, group: ParamGroup, factor: f64) -> Self {
        self.rates.push((group, factor));
        self
    }

    /// Tells `observer` what happens; it says whether to go on.
    #[must_use]
    pub fn with_observer(mut self, observer: impl FnMut(&Event) -> Control + 'a) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Trains `model` on `data`, and measures it on `held_out` as often as the configuration says and at
    /// the end. The model must be on a device with autodiff, with what shall learn set to learn, as
    /// `attach` does.
    ///
    /// On Linux the process's peak of resident memory is counted anew from here (`/proc/self/clear_refs`):
    /// [`TrainOutcome::peak_rss`].
    ///
    /// # Errors
    ///
    /// [`Interrupted`], which gives the model back, for: [`Error::NothingToTrain`], [`Error::NotActive`],
    /// [`Error::NoTargets`]; [`Error::TooLong`], [`Error::UnknownToken`] and [`Error::Tasks`] for data that do not fit the model;
    /// [`Error::Config`] for settings that need held-out data, and for a warmup as long as the run;
    /// [`Error::Resume`] for a checkpoint of another run; [`Error::Occupied`] for an output folder that holds one,
    /// [`Error::InUse`] for one that another run writes into; [`Error::Diverged`] as soon as a number is none;
    /// [`Error::Io`], [`Error::Peft`].
    pub fn train<M: CausalLm>(
        &mut self,
        model: M,
        data: &Dataset,
        held_out: Option<&Dataset>,
    ) -> Result<(M, TrainOutcome), Interrupted<M>> {
        memory::reset_peak();
        let (mut model, mut run) = match self.begin(&model, data, held_out) {
            Ok((restored, run)) => (restored.unwrap_or(model), run),
            Err(source) => return Err(Interrupted::at_start(model, source)),
        };
        let steps = run.plan.steps;
        let done = run.state.step;
        let mut go_on = self.tell(&Event::Start { steps, done });
        while run.state.step < steps && !run.state.early_stopped && go_on {
            let learned = match self.learn(&mut run, &model, data) {
                Ok(learned) => learned,
                Err(source) => {
                    self.rescue(&mut run, &model);
                    return Err(run.interrupted(model, Some(Ending::Failed), source));
                }
            };
            let rate = learned.report.learning_rate;
            model = run.optimizer.step(rate, model, learned.gradients);
            model = (run.training.after_step(model))
                .expect("the adapters are those that `before_step` found");
            run.keep_up(&model);
            go_on = self.stepped(&mut run, learned.start, learned.report);
            let step = run.state.step;
            let due = |every: Option<usize>| every.is_some_and(|every| step.is_multiple_of(every));
            let last = step == steps;
            if let Some(held_out) = held_out
                && (due(self.config.eval_every) || last)
            {
                match self.evaluate(&mut run, &model, held_out) {
                    Ok(wanted) => go_on &= wanted,
                    Err(source) => {
                        return Err(run.interrupted(model, Some(Ending::Failed), source));
                    }
                }
            }
            let ends = last || run.state.early_stopped || !go_on;
            if !ends && !due(self.config.save_every) {
                continue;
            }
            match self.save(&mut run, &model, self.config.keep_last) {
                Ok(wanted) => go_on &= wanted,
                Err(source) => {
                    go_on = !ends && self.save_failed(&mut run, &source);
                    if !go_on {
                        return Err(run.interrupted(model, None, source));
                    }
                }
            }
        }
        if let Some(best) = &run.best {
            model = trained::restored(model, best).expect("the values are this model's");
        }
        Ok((model, run.state.outcome(memory::peak())))
    }

    /// The run before its first step, and the model of the checkpoint that it goes on from.
    fn begin<M: CausalLm>(
        &self,
        model: &M,
        data: &Dataset,
        held_out: Option<&Dataset>,
    ) -> Result<(Option<M>, Run)> {
        check(&self.config, model, data, held_out)?;
        let plan = Plan::new(&self.config, data.len());
        let device = model.layout().like().0;
        let mut optimizer = AdamW::new(&self.config);
        for (group, factor) in &self.rates {
            if !(factor.is_finite() && *factor >= 0.0) {
                return Err(Error::Config {
                    field: "with_rate",
                    found: factor.to_string(),
                    expected: "given a number, at least 0",
                });
            }
            optimizer = optimizer.with_rate(group.clone(), *factor);
        }
        let output = self.output.as_deref().map(Output::take).transpose()?;
        let inputs = Inputs::new(model, &optimizer, data, held_out)?;
        let fresh = State::new(&self.config, plan.steps, inputs);
        let (restored, training, state, best) = match &self.resume {
            None => (None, model.training_hooks(plan.steps)?, fresh, None),
            Some(path) => {
                let loaded = checkpoint::load(path, model, &mut optimizer, &fresh)?;
                let model = Some(loaded.model);
                (model, loaded.training, loaded.state, loaded.best)
            }
        };
        if let Some(output) = &output {
            output.refuse_others(self.resume.as_deref(), state.step)?;
            output.clean()?;
            output.thin(state.step, self.config.keep_last)?;
        }
        let trained = restored.as_ref().unwrap_or(model);
        optimizer.prepare(trained);
        let groups = self.config.gradual_unfreezing.is_some();
        let run = Run {
            groups: groups.then(|| LayerGroups::new(trained)),
            output,
            saved: state.step,
            optimizer,
            training,
            state,
            best,
            plan,
            device,
            order: Vec::new(),
            epoch: None,
        };
        Ok((restored, run))
    }

    /// All of a step but the change of the model, which is as it was after an error.
    fn learn<M: CausalLm>(&self, run: &mut Run, model: &M, data: &Dataset) -> Result<Learned> {
        let start = Instant::now();
        let done = run.state.step;
        let epoch = run.plan.epoch(done);
        if run.epoch != Some(epoch) {
            run.order = run.plan.order(epoch);
            run.epoch = Some(epoch);
        }
        let rows = &run.order[run.plan.range(done)];
        let (tokens, targets) = data.sizes(rows);

        let part = match (&run.groups, self.config.gradual_unfreezing) {
            (Some(groups), Some(length)) => groups.unfrozen(model, run.plan.groups(done, length)),
            _ => model.clone(),
        };
        let (nll, gradients) = self.gradients(run, &part, data, rows, targets)?;
        drop(part);
        let loss = nll / targets as f64;
        let diverged = |what, value| Error::Diverged {
            step: done + 1,
            what,
            value,
        };
        if !loss.is_finite() {
            return Err(diverged("loss", loss));
        }
        let (mut gradients, norm) = clip_by_norm(gradients, model, self.config.max_grad_norm);
        if !norm.is_finite() {
            return Err(diverged("gradient norm", norm));
        }
        run.training.before_step(model, &mut gradients)?;
        Ok(Learned {
            gradients,
            start,
            report: StepReport {
                step: done + 1,
                steps: run.plan.steps,
                epoch: epoch + 1,
                loss,
                learning_rate: self.config.learning_rate_at(done, run.plan.steps),
                gradient_norm: norm,
                tokens,
                seconds: 0.0,
                resident: 0,
            },
        })
    }

    /// Takes a step into the state; false if the observer wants an end.
    fn stepped(&mut self, run: &mut Run, start: Instant, mut report: StepReport) -> bool {
        // A device that works on its own is waited for; one that fails says so at the next value read.
        let _ = run.device.sync();
        report.seconds = start.elapsed().as_secs_f64();
        report.resident = memory::resident();
        run.state.step += 1;
        run.state.losses.push(report.loss);
        run.state.tokens += report.tokens;
        run.state.seconds += report.seconds;
        self.tell(&Event::Step(report))
    }

    /// Sum of the negative log likelihoods, and the gradients of their mean over all of the step's
    /// `targets`: each token weighs the same, whatever micro-batch it is in. The gradients of the methods'
    /// penalty, which counts once a step, are among them.
    fn gradients<M: CausalLm>(
        &self,
        run: &Run,
        model: &M,
        data: &Dataset,
        rows: &[usize],
        targets: usize,
    ) -> Result<(f64, GradientsParams)> {
        let accumulation = self.config.gradient_accumulation;
        let scale = 1.0 / targets as f64;
        let mut sum = 0.0;
        let mut gradients = GradientsAccumulator::new();
        for (index, rows) in rows.chunks(self.config.batch_size).enumerate() {
            // Dropout draws from the device's seed.
            let index = run.state.step * accumulation + index;
            run.device.seed(mix(self.config.seed, index));
            let batch = data.batch(rows);
            let (nll, part) = if let Some(weight) = self.config.consistency_weight {
                twice(model, &batch, weight, scale)
            } else {
                let checkpointing = self.config.gradient_checkpointing;
                model.nll_gradients(&batch, checkpointing, scale)
            };
            sum += nll;
            gradients.accumulate(model, part);
        }
        if let Some(penalty) = run.training.penalty(model)? {
            let part = GradientsParams::from_grads(penalty.backward(), model);
            gradients.accumulate(model, part);
        }
        Ok((sum, gradients.grads()))
    }

    /// False if the observer wants an end.
    fn evaluate<M: CausalLm>(
        &mut self,
        run: &mut Run,
        model: &M,
        held_out: &Dataset,
    ) -> Result<bool> {
        let start = Instant::now();
        let (rows, step) = (self.config.batch_size, run.state.step);
        let evaluation = measure(&model.valid(), held_out, rows, step)?;
        let best = run.state.evaluated(evaluation);
        if best && self.config.keep_best {
            run.best = Some(trained::values(model));
        }
        run.state.seconds += start.elapsed().as_secs_f64();
        Ok(self.tell(&Event::Evaluated { evaluation, best }))
    }

    /// False if the observer wants an end.
    fn save<M: CausalLm>(&mut self, run: &mut Run, model: &M, keep: usize) -> Result<bool> {
        let Some(output) = &run.output else {
            return Ok(true);
        };
        let path = checkpoint::save(output, run, model, keep)?;
        run.saved = run.state.step;
        Ok(self.tell(&Event::Saved { path }))
    }

    /// Takes in that a checkpoint could not be written; false if the observer wants an end.
    fn save_failed(&mut self, run: &mut Run, error: &Error) -> bool {
        let step = run.state.step;
        let reason = error.to_string();
        run.state.failed_saves.push(FailedSave {
            step,
            reason: reason.clone(),
        });
        self.tell(&Event::SaveFailed { step, reason })
    }

    /// Writes a checkpoint of the steps before one that went wrong, beside those that are there.
    fn rescue<M: CausalLm>(&mut self, run: &mut Run, model: &M) {
        let new = run.saved < run.state.step;
        if new && run.output.is_some() && trained::finite(model) {
            // What went wrong first is what the caller hears of; that the run ends is settled.
            if let Err(error) = self.save(run, model, usize::MAX) {
                self.save_failed(run, &error);
            }
        }
    }

    fn tell(&mut self, event: &Event) -> bool {
        self.observer
            .as_mut()
            .is_none_or(|observer| observer(event) == Control::Continue)
    }
}

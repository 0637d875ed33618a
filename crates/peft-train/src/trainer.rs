//! The loop.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::ParamGroup;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Device;
use peft_core::Training;

use crate::check::check;
use crate::data::Dataset;
use crate::evaluate::measure;
use crate::event::{Control, Event, StepReport};
use crate::gradients::clip_by_norm;
use crate::inputs::Inputs;
use crate::model::CausalLm;
use crate::optimizer::AdamW;
use crate::outcome::TrainOutcome;
use crate::schedule::{Plan, mix};
use crate::state::State;
use crate::tensors::Tensors;
use crate::{Error, Result, TrainConfig, checkpoint, memory, trained};

/// Who is told of a run.
type Observer<'a> = Box<dyn FnMut(&Event) -> Control + 'a>;

/// Trains a causal language model.
///
/// A step adds up the gradients of its micro-batches, each token counting the same, clips them by their
/// common norm and lets AdamW take them. Order of the rows, dropout and learning rate follow from the
/// step's number and the configuration, so a run that goes on from a checkpoint computes what it would
/// have computed anyway.
pub struct Trainer<'a> {
    config: TrainConfig,
    output: Option<PathBuf>,
    resume: Option<PathBuf>,
    rates: Vec<(ParamGroup, f64)>,
    observer: Option<Observer<'a>>,
}

/// What a run carries from step to step.
struct Run<M> {
    model: M,
    optimizer: AdamW,
    /// What the adapters' methods do besides being trained.
    training: Training,
    state: State,
    /// Values of the best evaluation, with `keep_best`.
    best: Option<Tensors>,
    plan: Plan,
    /// The model's, for seeds.
    device: Device,
    /// The rows of `epoch`, in its order.
    order: Vec<usize>,
    epoch: Option<usize>,
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

    /// Writes checkpoints into `dir`, one at the end at least. Without it none are written. The folder may hold
    /// checkpoints only of the run that is gone on with, and none of later steps.
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
    /// [`Error::NothingToTrain`], [`Error::NotActive`], [`Error::NoTargets`]; [`Error::TooLong`] and
    /// [`Error::UnknownToken`] for data that do not fit the model; [`Error::Config`] for settings that need
    /// held-out data, and for a warmup as long as the run; [`Error::Resume`] for a checkpoint of another
    /// run; [`Error::Occupied`] for an output folder that holds one; [`Error::Diverged`] as soon as a number
    /// is none; [`Error::Io`], [`Error::Peft`].
    pub fn train<M: CausalLm>(
        &mut self,
        model: M,
        data: &Dataset,
        held_out: Option<&Dataset>,
    ) -> Result<(M, TrainOutcome)> {
        check(&self.config, &model, data, held_out)?;
        memory::reset_peak();
        let mut run = self.begin(model, data, held_out)?;
        let steps = run.plan.steps;
        let done = run.state.step;
        let mut go_on = self.tell(&Event::Start { steps, done });
        while run.state.step < steps && !run.state.early_stopped && go_on {
            run = self.step(run, data, &mut go_on)?;
            let step = run.state.step;
            let due = |every: Option<usize>| every.is_some_and(|every| step.is_multiple_of(every));
            let last = step == steps;
            if let Some(held_out) = held_out
                && (due(self.config.eval_every) || last)
            {
                go_on &= self.evaluate(&mut run, held_out)?;
            }
            let ends = last || run.state.early_stopped || !go_on;
            if due(self.config.save_every) || ends {
                go_on &= self.save(&run)?;
            }
        }
        let Run {
            mut model,
            state,
            best,
            ..
        } = run;
        if let Some(best) = &best {
            model = trained::restored(model, best).expect("the values are this model's");
        }
        Ok((model, state.outcome(memory::peak())))
    }

    fn begin<M: CausalLm>(
        &self,
        model: M,
        data: &Dataset,
        held_out: Option<&Dataset>,
    ) -> Result<Run<M>> {
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
        let inputs = Inputs::new(&model, &optimizer, data, held_out)?;
        let fresh = State::new(&self.config, plan.steps, inputs);
        let (model, training, state, best) = match &self.resume {
            None => {
                let training = model.training(plan.steps)?;
                (model, training, fresh, None)
            }
            Some(path) => {
                let loaded = checkpoint::load(path, model, &mut optimizer, &fresh)?;
                (loaded.model, loaded.training, loaded.state, loaded.best)
            }
        };
        if let Some(output) = &self.output {
            checkpoint::refuse_others(output, self.resume.as_deref(), state.step)?;
        }
        optimizer.prepare(&model);
        Ok(Run {
            model,
            optimizer,
            training,
            state,
            best,
            plan,
            device,
            order: Vec::new(),
            epoch: None,
        })
    }

    fn step<M: CausalLm>(
        &mut self,
        mut run: Run<M>,
        data: &Dataset,
        go_on: &mut bool,
    ) -> Result<Run<M>> {
        let start = Instant::now();
        let done = run.state.step;
        let epoch = run.plan.epoch(done);
        if run.epoch != Some(epoch) {
            run.order = run.plan.order(epoch);
            run.epoch = Some(epoch);
        }
        let rows = &run.order[run.plan.range(done)];
        let (tokens, targets) = data.sizes(rows);

        let (nll, gradients) = self.gradients(&run, data, rows, targets)?;
        let loss = nll / targets as f64;
        let diverged = |what, value| Error::Diverged {
            step: done + 1,
            what,
            value,
        };
        if !loss.is_finite() {
            return Err(diverged("loss", loss));
        }
        let (mut gradients, norm) = clip_by_norm(gradients, &run.model, self.config.max_grad_norm);
        if !norm.is_finite() {
            return Err(diverged("gradient norm", norm));
        }
        let rate = self.config.learning_rate_at(done, run.plan.steps);
        run.training.before_step(&run.model, &mut gradients)?;
        run.model = run.optimizer.step(rate, run.model, gradients);
        run.model = run.training.after_step(run.model)?;
        // A device that works on its own is waited for; one that fails says so at the next value read.
        let _ = run.device.sync();

        let seconds = start.elapsed().as_secs_f64();
        run.state.step += 1;
        run.state.losses.push(loss);
        run.state.tokens += tokens;
        run.state.seconds += seconds;
        *go_on = self.tell(&Event::Step(StepReport {
            step: run.state.step,
            steps: run.plan.steps,
            epoch: epoch + 1,
            loss,
            learning_rate: rate,
            gradient_norm: norm,
            tokens,
            seconds,
            resident: memory::resident(),
        }));
        Ok(run)
    }

    /// Sum of the negative log likelihoods, and the gradients of their mean over all of the step's
    /// `targets`: each token weighs the same, whatever micro-batch it is in. The gradients of the methods'
    /// penalty, which counts once a step, are among them.
    fn gradients<M: CausalLm>(
        &self,
        run: &Run<M>,
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
            let checkpointing = self.config.gradient_checkpointing;
            let (nll, part) = run.model.nll_gradients(&batch, checkpointing, scale);
            sum += nll;
            gradients.accumulate(&run.model, part);
        }
        if let Some(penalty) = run.training.penalty(&run.model)? {
            let part = GradientsParams::from_grads(penalty.backward(), &run.model);
            gradients.accumulate(&run.model, part);
        }
        Ok((sum, gradients.grads()))
    }

    /// False if the observer wants an end.
    fn evaluate<M: CausalLm>(&mut self, run: &mut Run<M>, held_out: &Dataset) -> Result<bool> {
        let start = Instant::now();
        let (rows, step) = (self.config.batch_size, run.state.step);
        let evaluation = measure(&run.model.valid(), held_out, rows, step)?;
        let best = run.state.evaluated(evaluation);
        if best && self.config.keep_best {
            run.best = Some(trained::values(&run.model));
        }
        run.state.seconds += start.elapsed().as_secs_f64();
        Ok(self.tell(&Event::Evaluated { evaluation, best }))
    }

    /// False if the observer wants an end.
    fn save<M: CausalLm>(&mut self, run: &Run<M>) -> Result<bool> {
        let Some(dir) = self.output.as_deref() else {
            return Ok(true);
        };
        let path = save_run(dir, run, self.config.keep_last)?;
        Ok(self.tell(&Event::Saved { path }))
    }

    fn tell(&mut self, event: &Event) -> bool {
        self.observer
            .as_mut()
            .is_none_or(|observer| observer(event) == Control::Continue)
    }
}

fn save_run<M: CausalLm>(dir: &Path, run: &Run<M>, keep: usize) -> Result<PathBuf> {
    let best = run.best.as_ref();
    let (model, optimizer) = (&run.model, &run.optimizer);
    checkpoint::save(dir, model, optimizer, &run.training, best, &run.state, keep)
}

//! A run that an error ends gives the model back, and its last good checkpoint stays.

mod common;

use std::cell::Cell;
use std::error::Error as StdError;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use common::{Bigram, texts, words};
use peft_core::PeftModule as _;
use peft_models::{Llama, LmBatch};
use peft_reparameterization::LoraConfig;
use peft_train::{
    CausalLm, Control, Dataset, Ending, Error, Event, Interrupted, Length, TrainConfig,
    TrainOutcome, Trainer, checkpoint, evaluate,
};

const STEPS: usize = 6;

fn device() -> Device {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    device.autodiff()
}

fn config() -> TrainConfig {
    TrainConfig::new()
        .with_length(Length::Steps(STEPS))
        .with_batch_size(4)
        .with_learning_rate(0.1)
        .with_save_every(1)
}

fn data() -> Dataset {
    texts(&words(), &config())
}

fn trainer<'a>() -> Trainer<'a> {
    Trainer::new(config()).unwrap()
}

/// A model whose losses are no numbers from some moment on.
#[derive(Module, Debug)]
struct Faulty {
    inner: Bigram,
    #[module(skip)]
    broken: Arc<AtomicBool>,
}

impl Faulty {
    fn new() -> Self {
        Self {
            inner: Bigram::new(0.0, &device()),
            broken: Arc::default(),
        }
    }
}

impl CausalLm for Faulty {
    fn nll(&self, batch: &LmBatch) -> Tensor<1> {
        let factor = if self.broken.load(Ordering::SeqCst) {
            f64::NAN
        } else {
            1.0
        };
        self.inner.nll(batch) * factor
    }
}

/// The table after so many of the steps.
fn after(steps: usize) -> (Bigram, TrainOutcome) {
    let observer = |event: &Event| match event {
        Event::Step(report) if report.step == steps => Control::Stop,
        _ => Control::Continue,
    };
    let mut trainer = trainer().with_observer(observer);
    let model = Bigram::new(0.0, &device());
    trainer.train(model, &data(), None).unwrap()
}

fn steps(dir: &Path) -> Vec<usize> {
    let found = checkpoint::list(dir).unwrap();
    found.into_iter().map(|(step, _)| step).collect()
}

#[test]
fn after_a_step_that_goes_wrong_the_model_is_as_it_was_before() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let model = Faulty::new();
    let broken = model.broken.clone();
    let observer = |event: &Event| {
        if matches!(event, Event::Step(report) if report.step == 3) {
            broken.store(true, Ordering::SeqCst);
        }
        Control::Continue
    };
    // No checkpoint is due before the end.
    let mut config = config();
    config.save_every = None;
    let mut trainer = Trainer::new(config)
        .unwrap()
        .with_output(&out)
        .with_observer(observer);
    let stopped = trainer.train(model, &data(), None).unwrap_err();
    let (expected, outcome) = after(3);
    assert!(matches!(stopped.source, Error::Diverged { step: 4, .. }));
    assert_eq!(stopped.model.inner.logits(), expected.logits());
    assert_eq!(stopped.outcome.losses, outcome.losses);
    assert_eq!(stopped.outcome.ending, Ending::Failed);
    assert!(stopped.best.is_none());
    // The steps before are on the disk as well, and a run can go on from them.
    assert_eq!(steps(&out), [3]);
    drop(trainer);
    let newest = checkpoint::latest(&out).unwrap().unwrap();
    let mut trainer = self::trainer().with_resume(newest);
    let (model, outcome) = trainer.train(Faulty::new(), &data(), None).unwrap();
    let (whole, expected) = after(STEPS);
    assert_eq!(model.inner.logits(), whole.logits());
    assert_eq!(outcome.losses, expected.losses);
}

#[test]
fn the_best_model_comes_back_too() {
    let config = config().with_eval_every(1).with_keep_best(true);
    // What is learned is the contrary of what is held out: the first evaluation is the best.
    let data = texts(&["abababab", "babababa"], &config);
    let held_out = texts(&["zzzzzz", "z"], &config);
    let model = Faulty::new();
    let broken = model.broken.clone();
    let observer = |event: &Event| {
        if matches!(event, Event::Evaluated { evaluation, .. } if evaluation.step == 3) {
            broken.store(true, Ordering::SeqCst);
        }
        Control::Continue
    };
    let mut trainer = Trainer::new(config).unwrap().with_observer(observer);
    let stopped = trainer.train(model, &data, Some(&held_out)).unwrap_err();
    broken.store(false, Ordering::SeqCst);
    let best = stopped.outcome.best.unwrap();
    assert_eq!((best.step, stopped.outcome.steps), (1, 3));
    let again = evaluate(&stopped.best.unwrap(), &held_out, 4).unwrap();
    assert!((again.nll - best.nll).abs() < 1e-12, "{again:?} {best:?}");
    let last = evaluate(&stopped.model, &held_out, 4).unwrap();
    let told = stopped.outcome.evaluations.last().unwrap();
    assert!((last.nll - told.nll).abs() < 1e-12, "{last:?} {told:?}");
}

#[test]
fn a_measurement_that_goes_wrong_leaves_the_model_and_no_checkpoint_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = Faulty::new();
    let broken = model.broken.clone();
    let observer = |event: &Event| {
        if matches!(event, Event::Step(report) if report.step == 2) {
            broken.store(true, Ordering::SeqCst);
        }
        Control::Continue
    };
    let mut trainer = Trainer::new(config().with_eval_every(1))
        .unwrap()
        .with_output(dir.path())
        .with_observer(observer);
    let held_out = texts(&["veniam"], &config());
    let stopped = trainer.train(model, &data(), Some(&held_out)).unwrap_err();
    assert!(stopped.to_string().contains("held-out loss"), "{stopped}");
    assert_eq!(stopped.model.inner.logits(), after(2).0.logits());
    assert_eq!(steps(dir.path()), [1]);
}

/// A folder that nothing can be written into for a while.
struct Disk {
    out: PathBuf,
    aside: PathBuf,
    full: Cell<bool>,
}

impl Disk {
    fn new(dir: &Path) -> Self {
        Self {
            out: dir.join("out"),
            aside: dir.join("aside"),
            full: Cell::new(false),
        }
    }

    /// Puts a file in the folder's place.
    fn fill(&self) {
        fs::rename(&self.out, &self.aside).unwrap();
        fs::write(&self.out, "").unwrap();
        self.full.set(true);
    }

    fn free(&self) {
        if self.full.replace(false) {
            fs::remove_file(&self.out).unwrap();
            fs::rename(&self.aside, &self.out).unwrap();
        }
    }
}

#[test]
fn a_checkpoint_that_fails_ends_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path());
    let mut told = Vec::new();
    let observer = |event: &Event| {
        match event {
            Event::Step(report) if report.step == 2 => disk.fill(),
            Event::SaveFailed { step, reason } => {
                assert!(reason.contains("out"), "{reason}");
                told.push(*step);
                if *step == 3 {
                    disk.free();
                }
            }
            _ => {}
        }
        Control::Continue
    };
    let mut trainer = trainer().with_output(&disk.out).with_observer(observer);
    let model = Bigram::new(0.0, &device());
    let (model, outcome) = trainer.train(model, &data(), None).unwrap();
    drop(trainer);
    assert_eq!(told, [2, 3]);
    let failed = outcome.failed_saves.iter().map(|failed| failed.step);
    assert_eq!(failed.collect::<Vec<_>>(), [2, 3]);
    assert_eq!(outcome.ending, Ending::Finished);
    assert_eq!(model.logits(), after(STEPS).0.logits());
    assert_eq!(steps(&disk.out), [5, 6]);
}

#[test]
fn the_error_of_the_last_checkpoint_comes_with_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path());
    let observer = |event: &Event| {
        if matches!(event, Event::Step(report) if report.step == STEPS) {
            disk.fill();
        }
        Control::Continue
    };
    let mut trainer = trainer().with_output(&disk.out).with_observer(observer);
    let model = Bigram::new(0.0, &device());
    let stopped = trainer.train(model, &data(), None).unwrap_err();
    drop(trainer);
    let (whole, expected) = after(STEPS);
    assert_eq!(stopped.outcome.ending, Ending::Finished);
    assert_eq!(stopped.outcome.losses, expected.losses);
    assert_eq!(stopped.model.logits(), whole.logits());
    assert!(stopped.to_string().contains("out"), "{stopped}");
    // The one before it is what the run goes on from.
    disk.free();
    let newest = checkpoint::latest(&disk.out).unwrap().unwrap();
    assert!(newest.ends_with("checkpoint-5"));
    let mut trainer = self::trainer().with_output(&disk.out).with_resume(newest);
    let model = Bigram::new(0.0, &device());
    let (model, outcome) = trainer.train(model, &data(), None).unwrap();
    assert_eq!(outcome.losses, expected.losses);
    assert_eq!(model.logits(), whole.logits());
}

#[test]
fn who_stops_because_nothing_is_saved_gets_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path());
    let observer = |event: &Event| match event {
        Event::Step(report) if report.step == 2 => {
            disk.fill();
            Control::Continue
        }
        Event::SaveFailed { .. } => Control::Stop,
        _ => Control::Continue,
    };
    let mut trainer = trainer().with_output(&disk.out).with_observer(observer);
    let model = Bigram::new(0.0, &device());
    let stopped = trainer.train(model, &data(), None).unwrap_err();
    assert_eq!(stopped.outcome.ending, Ending::Stopped);
    assert_eq!(stopped.outcome.failed_saves.len(), 1);
    assert_eq!(stopped.model.logits(), after(2).0.logits());
}

#[test]
fn a_run_that_does_not_begin_leaves_the_model_as_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let model = Bigram::new(0.0, &device());
    let (_, outcome) = trainer()
        .with_output(dir.path())
        .train(model, &data(), None)
        .unwrap();
    assert_eq!(outcome.steps, STEPS);
    let newest = checkpoint::latest(dir.path()).unwrap().unwrap();
    let moments = newest.join(checkpoint::OPTIMIZER_FILE);
    fs::copy(newest.join(checkpoint::SCHEDULE_FILE), moments).unwrap();
    let refused = |mut trainer: Trainer, part: &str| {
        let given = Bigram::new(3.0, &device());
        let logits = given.logits();
        let Interrupted {
            model,
            outcome,
            source,
            ..
        } = trainer.train(given, &data(), None).unwrap_err();
        assert!(source.to_string().contains(part), "{source}");
        assert_eq!(model.logits(), logits);
        assert_eq!((outcome.steps, outcome.ending), (0, Ending::Failed));
    };
    // The values of the checkpoint are fine, its moments are not.
    refused(trainer().with_resume(&newest), checkpoint::OPTIMIZER_FILE);
    refused(trainer().with_output(dir.path()), "another run");
}

#[test]
fn a_folder_that_a_run_writes_into_is_refused_to_a_second_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut refused = None;
    let observer = |event: &Event| {
        if matches!(event, Event::Step(report) if report.step == 1) {
            let mut second = trainer().with_output(dir.path());
            let model = Bigram::new(0.0, &device());
            refused = Some(second.train(model, &data(), None).unwrap_err().source);
        }
        Control::Continue
    };
    let mut first = trainer().with_output(dir.path()).with_observer(observer);
    let model = Bigram::new(0.0, &device());
    let (model, _) = first.train(model, &data(), None).unwrap();
    drop(first);
    assert_eq!(model.logits(), after(STEPS).0.logits());
    let refused = refused.unwrap();
    assert!(matches!(refused, Error::InUse { .. }), "{refused}");
    let folder = dir.path().display().to_string();
    assert!(refused.to_string().contains(&folder), "{refused}");
}

#[test]
fn what_is_left_of_killed_runs_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join(".checkpoint-2-aB3x.partial");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("trained.safetensors"), "half").unwrap();
    let mut trainer = trainer().with_output(dir.path());
    let model = Bigram::new(0.0, &device());
    trainer.train(model, &data(), None).unwrap();
    let names = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".lock", "checkpoint-5", "checkpoint-6"]);
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over_and_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let run = |mut trainer: Trainer| {
        let model = Bigram::new(0.0, &device());
        trainer.train(model, &data(), None).unwrap();
    };
    run(trainer().with_output(dir.path()));
    let damaged = dir.path().join("checkpoint-6");
    let file = damaged.join(checkpoint::TRAINED_FILE);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 3]).unwrap();
    let newest = checkpoint::latest(dir.path()).unwrap().unwrap();
    assert!(newest.ends_with("checkpoint-5"));
    run(trainer().with_output(dir.path()).with_resume(newest));
    assert_eq!(fs::read(&file).unwrap(), whole);
}

#[test]
fn the_error_goes_wherever_errors_go() {
    fn plain(mut trainer: Trainer, model: Llama, data: &Dataset) -> Result<(), Box<dyn StdError>> {
        trainer.train(model, data, None)?;
        Ok(())
    }
    fn threaded(
        mut trainer: Trainer,
        model: Llama,
        data: &Dataset,
    ) -> Result<(), Box<dyn StdError + Send + Sync>> {
        trainer.train(model, data, None)?;
        Ok(())
    }
    fn own(mut trainer: Trainer, model: Llama, data: &Dataset) -> peft_train::Result<()> {
        trainer.train(model, data, None)?;
        Ok(())
    }
    let model = || {
        let base = Llama::tiny(&device());
        base.attach("mine", &LoraConfig::new(2)).unwrap()
    };
    let empty = Dataset::default();
    let plain = plain(trainer(), model(), &empty).unwrap_err();
    let threaded = threaded(trainer(), model(), &empty).unwrap_err();
    let own = own(trainer(), model(), &empty).unwrap_err();
    assert!(matches!(own, Error::NoTargets { .. }), "{own}");
    for error in [plain.to_string(), threaded.to_string()] {
        assert_eq!(error, own.to_string());
    }
    // What `main` prints is the error, not the model.
    let printed = format!("{plain:?}");
    assert!(
        printed.contains("NoTargets") && printed.len() < 200,
        "{printed}"
    );
}

//! Folders of checkpoints: whose they are, and what a run does not go on from.

mod common;

use std::fs;
use std::path::Path;

use burn::module::ParamGroup;
use burn::tensor::Device;
use common::{Bigram, texts, words};
use peft_train::{
    Control, Error, Event, Length, Result, TrainConfig, TrainOutcome, Trainer, checkpoint,
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
        .with_eval_every(1)
        .with_keep_best(true)
}

fn trainer<'a>() -> Trainer<'a> {
    Trainer::new(config()).unwrap()
}

fn train(mut trainer: Trainer<'_>) -> Result<TrainOutcome> {
    let data = texts(&words(), &config());
    let held_out = texts(&["veniam", "quis", "nostrud"], &config());
    let model = Bigram::new(0.0, &device());
    let (_, outcome) = trainer.train(model, &data, Some(&held_out))?;
    Ok(outcome)
}

/// Ends a run after a step.
fn stop_after(step: usize) -> impl FnMut(&Event) -> Control {
    move |event| match event {
        Event::Step(report) if report.step == step => Control::Stop,
        _ => Control::Continue,
    }
}

fn steps(dir: &Path) -> Vec<usize> {
    let found = checkpoint::list(dir).unwrap();
    found.into_iter().map(|(step, _)| step).collect()
}

fn assert_occupied(found: Result<TrainOutcome>, by: &Path) {
    let error = found.unwrap_err();
    let Error::Occupied { path } = &error else {
        panic!("{error}");
    };
    assert_eq!(path, by);
    assert!(error.to_string().contains("empty folder"), "{error}");
}

#[test]
fn a_folder_is_for_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let (first, other) = (dir.path().join("first"), dir.path().join("other"));
    let [fifth, last] = [5, STEPS].map(|step| first.join(format!("checkpoint-{step}")));
    train(trainer().with_output(&first)).unwrap();
    assert_eq!(steps(&first), [5, 6]);

    // Once more, and again for two steps only: what is there stays.
    assert_occupied(train(trainer().with_output(&first)), &last);
    let short = trainer().with_output(&first).with_observer(stop_after(2));
    assert_occupied(train(short), &last);
    // From a checkpoint that is not the newest.
    let earlier = || trainer().with_resume(&fifth);
    assert_occupied(train(earlier().with_output(&first)), &last);
    assert_eq!(steps(&first), [5, 6]);

    // Elsewhere it goes on from there, once.
    let outcome = train(earlier().with_output(&other)).unwrap();
    assert_eq!((outcome.steps, steps(&other)), (STEPS, vec![6]));
    let foreign = other.join("checkpoint-6");
    assert_occupied(train(earlier().with_output(&other)), &foreign);
    let resumed = trainer().with_resume(&last).with_output(&other);
    assert_occupied(train(resumed), &foreign);

    // The newest one of the folder itself is what a run goes on from.
    let finished = trainer().with_resume(&last).with_output(&first);
    assert_eq!(train(finished).unwrap().steps, STEPS);
}

#[test]
fn checkpoints_of_later_steps_are_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let later = dir.path().join("checkpoint-900");
    let mut saved = Vec::new();
    let observer = |event: &Event| {
        match event {
            Event::Step(report) if report.step == 1 => fs::create_dir_all(&later).unwrap(),
            Event::Saved { path } => {
                assert!(path.exists(), "{}", path.display());
                saved.push(path.clone());
            }
            _ => {}
        }
        Control::Continue
    };
    train(trainer().with_output(dir.path()).with_observer(observer)).unwrap();
    assert_eq!(saved.len(), STEPS);
    assert_eq!(steps(dir.path()), [5, 6, 900]);
}

#[test]
fn rates_of_groups_are_those_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let table = || ParamGroup::from_path("table.weight");
    let doubled = || trainer().with_output(dir.path()).with_rate(table(), 2.0);
    train(doubled().with_observer(stop_after(3))).unwrap();
    let newest = checkpoint::latest(dir.path()).unwrap().unwrap();
    for other in [trainer(), trainer().with_rate(table(), 3.0)] {
        let error = train(other.with_resume(&newest)).unwrap_err().to_string();
        assert!(
            error.contains("`table.weight`") && error.contains("`with_rate`"),
            "{error}"
        );
    }
    let outcome = train(doubled().with_resume(&newest)).unwrap();
    assert_eq!(outcome.steps, STEPS);
    let none = train(trainer().with_rate(table(), f64::NAN)).unwrap_err();
    assert!(none.to_string().contains("`with_rate`"), "{none}");
}

#[test]
fn damaged_best_values_are_found_before_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let run = trainer().with_output(dir.path());
    train(run.with_observer(stop_after(3))).unwrap();
    let newest = checkpoint::latest(dir.path()).unwrap().unwrap();
    let best = newest.join(checkpoint::BEST_FILE);
    let whole = fs::read(&best).unwrap();
    let resumed = || train(trainer().with_resume(&newest));
    let refused = || {
        let error = resumed().unwrap_err().to_string();
        assert!(error.contains(checkpoint::BEST_FILE), "{error}");
    };
    // Tensors of other names, half a file, none.
    fs::copy(newest.join(checkpoint::OPTIMIZER_FILE), &best).unwrap();
    refused();
    fs::write(&best, &whole[..whole.len() / 2]).unwrap();
    refused();
    fs::remove_file(&best).unwrap();
    refused();
    fs::write(&best, &whole).unwrap();
    assert_eq!(resumed().unwrap().steps, STEPS);
}

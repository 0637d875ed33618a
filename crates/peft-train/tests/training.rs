//! The loop on a model of one table: what a step is made of, when it ends, what is refused.

mod common;

use burn::tensor::Device;
use common::{Bigram, Letters, VOCABULARY, texts, words};
use peft_testing::{farthest, largest};
use peft_train::{
    Control, Dataset, Ending, Error, Event, Length, Record, TrainConfig, TrainOutcome, Trainer,
    checkpoint, evaluate,
};

fn device() -> Device {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    device.autodiff()
}

fn config(steps: usize) -> TrainConfig {
    TrainConfig::new()
        .with_length(Length::Steps(steps))
        .with_batch_size(4)
        .with_learning_rate(0.1)
}

fn train(config: TrainConfig) -> (Bigram, TrainOutcome) {
    let data = texts(&words(), &config);
    let mut trainer = Trainer::new(config).unwrap();
    trainer
        .train(Bigram::new(0.0, &device()), &data, None)
        .unwrap()
}

fn near(found: &[f64], expected: &[f64], tolerance: f64) {
    let error = farthest(found.iter().copied(), expected.iter().copied());
    assert!(
        error <= tolerance * largest(expected.iter().copied()),
        "{error} apart: {found:?} for {expected:?}"
    );
}

#[test]
fn the_first_loss_is_that_of_guessing_and_it_falls() {
    let (_, outcome) = train(config(30).with_learning_rate(0.3));
    let guess = (VOCABULARY as f64).ln();
    near(&outcome.losses[..1], &[guess], 1e-5);
    assert!(outcome.losses[29] < 0.8 * guess, "{:?}", outcome.losses);
    assert_eq!((outcome.steps, outcome.ending), (30, Ending::Finished));
    assert!(outcome.tokens > 0 && outcome.seconds > 0.0);
    let json = serde_json::to_string(&outcome).unwrap();
    assert_eq!(
        serde_json::from_str::<TrainOutcome>(&json).unwrap(),
        outcome
    );
}

#[test]
fn accumulation_weighs_every_token_the_same() {
    let (_, whole) = train(config(12));
    for (rows, batches) in [(2, 2), (1, 4)] {
        let parts = config(12)
            .with_batch_size(rows)
            .with_gradient_accumulation(batches);
        let (_, parts) = train(parts);
        near(&parts.losses, &whole.losses, 1e-5);
    }
}

#[test]
fn epochs_are_counted_by_data() {
    let (_, outcome) = train(config(1).with_length(Length::Epochs(2)));
    assert_eq!(outcome.steps, 10, "20 rows, 4 a step, twice");
}

#[test]
fn held_out_loss_weighs_tokens_and_ends_the_run() {
    let config = config(50)
        .with_eval_every(1)
        .with_early_stopping_patience(2)
        .with_keep_best(true);
    let data = texts(&["abababab", "babababa"], &config);
    let held_out = texts(&["zzzzzz", "z"], &config);
    let mut trainer = Trainer::new(config).unwrap();
    let model = Bigram::new(0.0, &device());
    let (model, outcome) = trainer.train(model, &data, Some(&held_out)).unwrap();
    assert_eq!(outcome.ending, Ending::EarlyStopped, "{outcome:?}");
    assert_eq!(
        outcome.steps, 3,
        "one evaluation that is the best, two that are worse"
    );
    let best = outcome.best.unwrap();
    assert_eq!((best.step, best.targets), (1, held_out.targets()));
    let again = evaluate(&model, &held_out, 4).unwrap();
    assert!(
        (again.nll - best.nll).abs() < 1e-12,
        "the best model is given back"
    );
    let one_by_one = evaluate(&model, &held_out, 1).unwrap();
    near(&[one_by_one.nll], &[again.nll], 1e-6);
    assert!((again.perplexity() - again.nll.exp()).abs() < 1e-9);
}

#[test]
fn stopped_and_gone_on_it_ends_with_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(9)
        .with_batch_size(2)
        .with_save_every(2)
        .with_weight_decay(0.01);
    let data = texts(&words(), &config);
    let (whole, expected) = train(config.clone());

    let observer = |event: &Event| match event {
        Event::Step(report) if report.step == 5 => Control::Stop,
        _ => Control::Continue,
    };
    let mut trainer = Trainer::new(config.clone())
        .unwrap()
        .with_output(dir.path())
        .with_observer(observer);
    let (_, stopped) = trainer
        .train(Bigram::new(0.0, &device()), &data, None)
        .unwrap();
    assert_eq!((stopped.steps, stopped.ending), (5, Ending::Stopped));
    let steps: Vec<usize> = checkpoint::list(dir.path())
        .unwrap()
        .into_iter()
        .map(|(step, _)| step)
        .collect();
    assert_eq!(
        steps,
        [4, 5],
        "the last two are kept, and one was written for the stop"
    );

    let newest = checkpoint::latest(dir.path()).unwrap().unwrap();
    let mut trainer = Trainer::new(config).unwrap().with_resume(&newest);
    // All that was learned is in the checkpoint.
    let (model, outcome) = trainer
        .train(Bigram::new(3.0, &device()), &data, None)
        .unwrap();
    assert_eq!(outcome.losses, expected.losses);
    assert_eq!(outcome.tokens, expected.tokens);
    assert_eq!(model.logits(), whole.logits());
}

#[test]
fn another_run_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let data = texts(&words(), &config(2));
    let run = |config: TrainConfig, data: &Dataset| {
        let mut trainer = Trainer::new(config).unwrap();
        if let Some(newest) = checkpoint::latest(dir.path()).unwrap() {
            trainer = trainer.with_resume(newest);
        } else {
            trainer = trainer.with_output(dir.path());
        }
        let model = Bigram::new(0.0, &device());
        let (_, outcome) = trainer.train(model, data, None)?;
        Ok::<_, Error>(outcome)
    };
    run(config(2), &data).unwrap();
    assert_eq!(run(config(2), &data).unwrap().steps, 2, "it is at its end");
    let error = run(config(2).with_seed(1), &data).unwrap_err().to_string();
    assert!(error.contains("`seed`"), "{error}");
    let other = texts(&["other", "words", "here"], &config(2));
    let error = run(config(2), &other).unwrap_err().to_string();
    assert!(error.contains("training data"), "{error}");
}

#[test]
fn what_cannot_be_trained_is_refused_with_the_way_out() {
    let config = config(3);
    let data = texts(&words(), &config);
    let refusal = |model: Bigram, data: &Dataset, config: &TrainConfig| {
        let mut trainer = Trainer::new(config.clone()).unwrap();
        trainer.train(model, data, None).unwrap_err().source
    };
    let nan = refusal(Bigram::new(f32::NAN, &device()), &data, &config);
    assert!(matches!(nan, Error::Diverged { step: 1, .. }), "{nan}");
    assert!(nan.to_string().contains("learning_rate"), "{nan}");

    let plain = device().without_autodiff();
    let nothing = refusal(Bigram::new(0.0, &plain), &data, &config);
    assert!(matches!(nothing, Error::NothingToTrain), "{nothing}");

    let model = || Bigram::new(0.0, &device());
    let empty = refusal(model(), &Dataset::default(), &config);
    assert!(empty.to_string().contains("training data"), "{empty}");
    let best = refusal(model(), &data, &config.clone().with_keep_best(true));
    assert!(best.to_string().contains("keep_best"), "{best}");
    let nothing_learned = Record::Text(String::new());
    let data = Dataset::new(&[nothing_learned], &Letters, &config).unwrap();
    assert!(data.is_empty());
}

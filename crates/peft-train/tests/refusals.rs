//! What does not fit a model, or would train nothing, is refused before the first step.

mod common;

use burn::tensor::Device;
use common::{Bigram, Letters, texts, words};
use peft_core::PeftModule as _;
use peft_models::{Llama, LlamaConfig};
use peft_reparameterization::{LoraConfig, PolyConfig};
use peft_soft_prompt::{PrefixTuningConfig, PromptTuningConfig};
use peft_train::{
    CausalLm, Dataset, Error, Length, Limits, Record, TrainConfig, Trainer, Warmup, evaluate,
};

fn device() -> Device {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    device.autodiff()
}

fn config() -> TrainConfig {
    TrainConfig::new()
        .with_length(Length::Steps(3))
        .with_batch_size(2)
}

/// A text of 200 letters, in rows of so many.
fn long(tokens: usize) -> Dataset {
    let text = "abcdefghij".repeat(20);
    texts(&[text.as_str()], &config().with_max_length(tokens))
}

fn refusal<M: CausalLm>(
    model: M,
    data: &Dataset,
    held_out: Option<&Dataset>,
    config: TrainConfig,
) -> Error {
    let mut trainer = Trainer::new(config).unwrap();
    trainer.train(model, data, held_out).unwrap_err().source
}

#[test]
fn rows_longer_than_the_model_has_positions_for() {
    let base = Llama::tiny(&device());
    let limits = Limits {
        positions: 64,
        vocabulary: 101,
    };
    assert_eq!(base.limits(), Some(limits));
    let lora = || base.attach("mine", &LoraConfig::new(2)).unwrap();
    let (fits, exceeds) = (long(64), long(65));
    let error = refusal(lora(), &exceeds, None, config());
    assert!(
        matches!(error, Error::TooLong { tokens: 65, .. }),
        "{error}"
    );
    let error = error.to_string();
    assert!(
        error.contains("training") && error.contains("`max_length` of 64"),
        "{error}"
    );
    let error = refusal(lora(), &fits, Some(&exceeds), config());
    assert!(error.to_string().contains("held-out"), "{error}");
    let error = evaluate(&base, &exceeds, 2).unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    assert!(evaluate(&base, &fits, 2).unwrap().nll > 0.0);
}

/// A model that has to know the task of each row, and data that do not say it, or say another.
#[test]
fn data_without_the_tasks_that_adapters_have() {
    let base = Llama::tiny(&device());
    let poly = || base.attach("mine", &PolyConfig::new(2, 3)).unwrap();
    let of_tasks = |tasks: &[usize]| {
        let records: Vec<Record> = (tasks.iter())
            .map(|task| Record::Text("abc".into()).with_task(*task))
            .collect();
        Dataset::new(&records, &Letters, &config()).unwrap()
    };
    let plain = texts(&["abc"], &config());
    for (data, held_out, word) in [
        (&plain, None, "training data has no task"),
        (&of_tasks(&[0, 3]), None, "training data has task 3"),
        (
            &of_tasks(&[0, 2]),
            Some(&plain),
            "held-out data has no task",
        ),
    ] {
        let error = refusal(poly(), data, held_out, config());
        assert!(matches!(error, Error::Tasks { tasks: 3, .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(evaluate(&poly(), &plain, 1).is_err());
}

#[test]
fn virtual_tokens_take_positions() {
    let base = Llama::tiny(&device());
    let prompt = base.attach("mine", &PromptTuningConfig::new(10)).unwrap();
    let prefix = base.attach("mine", &PrefixTuningConfig::new(10)).unwrap();
    for model in [prompt, prefix] {
        assert_eq!(model.limits().unwrap().positions, 54);
        let error = refusal(model.clone(), &long(55), None, config());
        let room = Error::TooLong {
            what: "training",
            tokens: 55,
            positions: 54,
        };
        assert_eq!(error.to_string(), room.to_string());
        let mut trainer = Trainer::new(config()).unwrap();
        let (_, outcome) = trainer.train(model, &long(54), None).unwrap();
        assert_eq!(outcome.steps, 3);
    }
}

#[test]
fn tokens_that_the_model_does_not_know() {
    let mut small = LlamaConfig::tiny();
    small.vocab_size = 20;
    let base = Llama::scrambled(&small, &device());
    let data = texts(&["az"], &config());
    let error = evaluate(&base, &data, 1).unwrap_err();
    assert!(
        matches!(error, Error::UnknownToken { token: 28, .. }),
        "{error}"
    );
    let model = base.attach("mine", &LoraConfig::new(2)).unwrap();
    let error = refusal(model, &data, None, config()).to_string();
    assert!(error.contains("28") && error.contains("20"), "{error}");
}

#[test]
fn adapters_that_take_no_part() {
    let model = Llama::tiny(&device())
        .attach("mine", &LoraConfig::new(2))
        .unwrap();
    let data = texts(&words(), &config());
    let idle = model.disable_adapters().unwrap();
    let error = refusal(idle, &data, None, config());
    assert!(matches!(error, Error::NotActive { .. }), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("mine") && error.contains("`activate`"),
        "{error}"
    );
    let bare = model.unload().unwrap();
    let error = refusal(bare, &data, None, config());
    assert!(matches!(error, Error::NothingToTrain), "{error}");
}

#[test]
fn settings_that_would_do_nothing() {
    let data = texts(&words(), &config());
    let steps = |steps| config().with_length(Length::Steps(steps));
    for (config, field) in [
        (steps(3).with_warmup(Warmup::Steps(3)), "`warmup`"),
        (steps(5).with_warmup(Warmup::Ratio(0.9)), "`warmup`"),
        (
            config().with_gradient_checkpointing(true),
            "`gradient_checkpointing`",
        ),
    ] {
        let model = Bigram::new(0.0, &device());
        let error = refusal(model, &data, None, config).to_string();
        assert!(error.contains(field), "{error}");
    }
}

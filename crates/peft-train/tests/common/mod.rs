//! A tokenizer and a model that need no file.
#![allow(dead_code)] // Not every test uses all of it.

use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::Embedding;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_models::{Llama, LmBatch, LoadError, Message, Moment};
use peft_train::data::NO_TARGET;
use peft_train::{
    CausalLm, Control, Dataset, Event, Record, Tokenize, TrainConfig, TrainOutcome, Trainer,
    checkpoint,
};

/// Tokens of [`Letters`].
pub(crate) const VOCABULARY: usize = 30;

/// `a` to `z` are 3 to 28, anything else is 29; 2 begins a text and 1 ends it.
pub(crate) struct Letters;

impl Tokenize for Letters {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, LoadError> {
        let mut ids = if special { vec![2] } else { Vec::new() };
        ids.extend(text.bytes().map(|byte| match byte {
            b'a'..=b'z' => u32::from(byte - b'a') + 3,
            _ => 29,
        }));
        Ok(ids)
    }

    fn eos(&self) -> Option<u32> {
        Some(1)
    }

    fn chat(&self, messages: &[Message], _reply: bool, _now: Moment) -> Result<String, LoadError> {
        Ok(messages
            .iter()
            .map(|message| message.content.as_str())
            .collect())
    }
}

/// Rows of texts.
pub(crate) fn texts(texts: &[&str], config: &TrainConfig) -> Dataset {
    let records: Vec<Record> = texts
        .iter()
        .map(|text| Record::Text((*text).to_string()))
        .collect();
    Dataset::new(&records, &Letters, config).unwrap()
}

/// Words of unequal length, the same in every run.
pub(crate) fn words() -> Vec<&'static str> {
    vec![
        "lorem",
        "ipsum",
        "dolor",
        "sit",
        "amet",
        "consectetur",
        "adipiscing",
        "elit",
        "sed",
        "do",
        "eiusmod",
        "tempor",
        "incididunt",
        "ut",
        "labore",
        "et",
        "dolore",
        "magna",
        "aliqua",
        "enim",
    ]
}

/// Trains until the end or until `stop_at`, with checkpoints in `out`; from the newest of them on if it is to `resume`.
pub(crate) fn run(
    config: TrainConfig,
    model: Llama,
    out: &Path,
    resume: bool,
    stop_at: Option<usize>,
) -> (Llama, TrainOutcome) {
    let data = texts(&words(), &config);
    let held_out = texts(&["veniam", "quis", "nostrud"], &config);
    let mut trainer = Trainer::new(config)
        .unwrap()
        .with_output(out)
        .with_observer(|event| match event {
            Event::Step(report) if Some(report.step) == stop_at => Control::Stop,
            _ => Control::Continue,
        });
    if resume {
        trainer = trainer.with_resume(checkpoint::latest(out).unwrap().unwrap());
    }
    trainer.train(model, &data, Some(&held_out)).unwrap()
}

/// Predicts a token from the one before it alone.
#[derive(Module, Debug)]
pub(crate) struct Bigram {
    pub(crate) table: Embedding,
}

impl Bigram {
    /// With all logits `value`.
    pub(crate) fn new(value: f32, device: &Device) -> Self {
        let logits = Tensor::full([VOCABULARY, VOCABULARY], value, device);
        Self {
            table: Embedding {
                weight: Param::from_tensor(logits),
            },
        }
    }

    pub(crate) fn logits(&self) -> TensorData {
        self.table.weight.val().into_data()
    }
}

impl CausalLm for Bigram {
    fn nll(&self, batch: &LmBatch) -> Tensor<1> {
        let device = self.table.weight.val().device();
        let pairs = batch.ids.iter().zip(&batch.targets);
        let (ids, targets): (Vec<i64>, Vec<i64>) = pairs
            .filter(|(_, target)| **target != NO_TARGET)
            .map(|(id, target)| (i64::from(*id), *target))
            .unzip();
        let count = ids.len();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, count]), &device);
        let logits = self.table.forward(ids).reshape([count, VOCABULARY]);
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &device);
        log_softmax(logits, 1).gather(1, targets).sum().neg()
    }
}

//! Texts with classes: a fresh head on an encoder.

use burn::module::Module;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft_core::calibration::Calibrate as _;
use peft_core::method::Method;
use peft_models::{Bert, BertClassifier, Pooling, Tokenizer};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::fit::{Learnable, fit};
use super::parts::{self, Part};
use super::{EXAMPLES, Measured, Progress, counts, latency, saved_bytes};
use crate::Result;
use crate::definition::Training;
use crate::job::{Job, rows};
use crate::record::Rows;

/// Rounds of the latency measurement.
const LATENCY_ROUNDS: usize = 30;

type Inputs = (Tensor<2, Int>, Option<Tensor<2, Bool>>);

/// Tokenized rows with their classes.
struct Texts {
    tokens: Vec<Vec<u32>>,
    labels: Vec<i64>,
    tokenizer: Tokenizer,
}

impl Texts {
    fn batch(&self, rows: &[usize], device: &Device) -> (Inputs, Tensor<1, Int>) {
        let tokens: Vec<&[u32]> = rows
            .iter()
            .map(|row| self.tokens[*row].as_slice())
            .collect();
        let (ids, padding) = self.tokenizer.batch(&tokens).to_device(device);
        let labels: Vec<i64> = rows.iter().map(|row| self.labels[*row]).collect();
        let labels = Tensor::from_data(TensorData::new(labels, [rows.len()]), device);
        ((ids, padding), labels)
    }
}

struct Classification<'a> {
    texts: Texts,
    /// All rows to train on.
    all: Vec<usize>,
    /// Those that are learned now, shuffled again each epoch.
    train: Vec<usize>,
    dev: Vec<usize>,
    settings: &'a Training,
    loss: CrossEntropyLoss,
    /// Without autodiff.
    inner: Device,
    device: Device,
}

impl Learnable for Classification<'_> {
    type Model = BertClassifier;
    type Batch = (Inputs, Tensor<1, Int>);

    fn rows(&self) -> usize {
        self.train.len()
    }

    fn learn(&mut self, share: Option<(usize, usize)>) {
        self.train = match share {
            Some((index, of)) => parts::share(&self.all, index, of),
            None => self.all.clone(),
        };
    }

    /// Grouped by length, rows are sorted within blocks of eight batches, so that batches still differ from epoch to
    /// epoch.
    fn batches(&mut self, order: &mut StdRng) -> Vec<Vec<usize>> {
        let size = self.settings.batch_size;
        self.train.shuffle(order);
        if self.settings.group_by_length {
            for block in self.train.chunks_mut(8 * size) {
                block.sort_by_key(|row| self.texts.tokens[*row].len());
            }
        }
        let mut batches: Vec<_> = self.train.chunks(size).map(<[usize]>::to_vec).collect();
        if self.settings.group_by_length {
            batches.shuffle(order);
        }
        batches
    }

    fn batch(&self, rows: &[usize]) -> (Self::Batch, usize) {
        let batch = self.texts.batch(rows, &self.device);
        let tokens = batch.0.0.dims().iter().product();
        (batch, tokens)
    }

    fn gradients(
        &self,
        model: &BertClassifier,
        ((ids, padding), labels): Self::Batch,
    ) -> (f64, GradientsParams) {
        let loss = self.loss.forward(model.forward(ids, padding), labels);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), model);
        (value, gradients)
    }

    fn dev(&self, model: &BertClassifier) -> f64 {
        self.accuracy(model, &self.dev)
    }
}

impl Classification<'_> {
    /// Share of rows whose class is the most probable one; NaN of no rows.
    fn accuracy(&self, model: &BertClassifier, part: &[usize]) -> f64 {
        if part.is_empty() {
            return f64::NAN;
        }
        let model = model.valid();
        // Rows of like length together: less padding, same answer.
        let mut sorted = part.to_vec();
        sorted.sort_by_key(|row| self.texts.tokens[*row].len());
        let mut right = 0;
        for chunk in sorted.chunks(64) {
            let ((ids, padding), labels) = self.texts.batch(chunk, &self.inner);
            let logits = model.forward(ids, padding);
            if !logits.clone().into_data().iter::<f64>().all(f64::is_finite) {
                return f64::NAN;
            }
            let answers: Tensor<1, Int> = logits.argmax(1).squeeze_dim(1);
            right += answers.equal(labels).int().sum().into_scalar::<i64>();
        }
        right as f64 / part.len() as f64
    }

    /// Share of the most frequent class; NaN of no rows.
    fn majority(&self, part: &[usize], classes: usize) -> f64 {
        if part.is_empty() {
            return f64::NAN;
        }
        let count = |class: usize| {
            part.iter()
                .filter(|row| self.texts.labels[**row] == class as i64)
                .count()
        };
        let most = (0..classes).map(count).max().unwrap_or(0);
        most as f64 / part.len() as f64
    }
}

pub(super) fn run(
    job: &Job,
    method: &dyn Method,
    built_from: &[Part],
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Measured> {
    let inner = peft_core::device::device(&job.device)?;
    let device = inner.clone().autodiff();
    device.seed(job.seed);
    let (data, split) = rows(&job.task)?;
    let folder = job.model_folder()?;
    let tokenizer = Tokenizer::load(&folder)?;
    let words: Vec<&str> = data.rows.iter().map(|row| row.text.as_str()).collect();
    let texts = Texts {
        tokens: tokenizer.encode(&words, job.task.max_len)?,
        labels: data.rows.iter().map(|row| row.label as i64).collect(),
        tokenizer,
    };
    let classes = data.labels.len();
    let bert = Bert::load(&folder, &device)?;
    let model_parameters = bert.num_params() as u64;
    let base = BertClassifier::new_head(bert, classes, Pooling::Mean, 0.0, &device)?;
    let sizes = [&split.train, &split.dev, &split.test].map(|part| part.len() as u64);
    let mut task = Classification {
        texts,
        all: split.train.clone(),
        train: split.train,
        dev: split.dev,
        settings: &job.task.training,
        loss: CrossEntropyLossConfig::new().init(&device),
        inner,
        device,
    };
    let base = parts::train(built_from, &mut task, base, progress)?;
    let examples = task.train.iter().take(EXAMPLES).copied();
    let model = base.attach_on("compared", method, examples, |model, row| {
        let ((ids, padding), labels) = task.texts.batch(&[row], &task.device);
        task.loss.forward(model.forward(ids, padding), labels)
    })?;
    // Full fine-tuning would keep it in memory beside its own weights.
    drop(base);
    let counts = parts::counted(built_from, &model, counts(&model))?;
    let fitted = fit(job, &mut task, model, progress)?;
    let test = task.accuracy(&fitted.model, &split.test);
    let longest = (0..task.texts.tokens.len())
        .max_by_key(|row| task.texts.tokens[*row].len())
        .unwrap_or(0);
    let (ids, padding) = task.texts.batch(&[longest], &task.inner).0;
    let call = |model: &BertClassifier| {
        let _ = model.forward(ids.clone(), padding.clone()).into_data();
    };
    Ok(Measured {
        model_parameters,
        rows: Rows {
            train: sizes[0],
            dev: sizes[1],
            test: sizes[2],
            general: 0,
        },
        baseline: task.majority(&split.test, classes),
        test,
        forgetting: None,
        counts,
        adapter_bytes: saved_bytes(&fitted.model)?,
        latency_ms: latency(&fitted.model, method, LATENCY_ROUNDS, call)?,
        curve: fitted.curve,
        step_s: fitted.step_s,
        tokens: fitted.tokens,
        memory: fitted.memory,
    })
}

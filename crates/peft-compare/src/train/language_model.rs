//! Running text: a causal language model that goes on learning to predict the next token.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::calibration::Calibrate as _;
use peft_core::method::Method;
use peft_models::{Llama, LlamaTokenizer, LmBatch};
use peft_train::{Dataset, Record, TrainConfig};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::fit::{Learnable, fit};
use super::parts::{self, Part};
use super::{EXAMPLES, Measured, Progress, counts, latency, saved_bytes};
use crate::base::UNTRAINED;
use crate::data::Passages;
use crate::definition::{SplitRule, Task};
use crate::job::{Job, texts};
use crate::measure;
use crate::record::{Counts, Epoch, Forgetting, Latency, Memory, Rows};
use crate::{Error, Result};

/// Rounds of the latency measurement.
const LATENCY_ROUNDS: usize = 10;
/// Blocks that are evaluated at once.
const EVALUATION_BATCH: usize = 4;

/// Blocks of equally many tokens; a text that ends in one is followed by the next, which does not see it.
struct Blocks {
    data: Dataset,
    /// Those that are used.
    chosen: Vec<usize>,
}

impl Blocks {
    /// At most `most` blocks of `texts`, spread evenly over them: a few blocks are of all of them.
    fn new(
        task: &Task,
        part: &str,
        texts: Vec<String>,
        most: Option<usize>,
        tokenizer: &LlamaTokenizer,
    ) -> Result<Self> {
        let records: Vec<Record> = texts.into_iter().map(Record::Text).collect();
        let config = TrainConfig::new()
            .with_max_length(task.max_len)
            .with_packing(true);
        let data = Dataset::new(&records, tokenizer, &config)?;
        let count = most.unwrap_or(data.len()).min(data.len());
        if count == 0 {
            return Err(Error::Expectation {
                task: task.name.clone(),
                reason: format!(
                    "there is no token to predict in its {part} text, or none is wanted"
                ),
            });
        }
        Ok(Self {
            chosen: spread(data.len(), count),
            data,
        })
    }

    fn len(&self) -> u64 {
        self.chosen.len() as u64
    }

    /// Mean negative log likelihood of a token, in nats. `model` has no autodiff.
    fn loss(&self, model: &Llama) -> f64 {
        let (mut sum, mut targets) = (0.0, 0);
        for rows in self.chosen.chunks(EVALUATION_BATCH) {
            let batch = self.data.batch(rows);
            sum += f64::from(model.loss(&batch).into_scalar::<f32>());
            targets += batch.target_count();
        }
        sum / targets as f64
    }
}

/// `count` of the numbers below `of`, evenly apart.
fn spread(of: usize, count: usize) -> Vec<usize> {
    (0..count).map(|index| index * of / count).collect()
}

/// The four parts of a task.
struct Parts {
    train: Blocks,
    dev: Blocks,
    test: Blocks,
    general: Blocks,
}

impl Parts {
    fn new(task: &Task, tokenizer: &LlamaTokenizer) -> Result<Self> {
        let passages = Passages::of(texts(task)?);
        let SplitRule {
            train,
            dev,
            test,
            general,
            ..
        } = task.split;
        let blocks = |part, texts, most| Blocks::new(task, part, texts, most, tokenizer);
        Ok(Self {
            train: blocks("training", passages.train, train)?,
            dev: blocks("dev", passages.dev, dev)?,
            test: blocks("test", passages.test, test)?,
            general: blocks("general", passages.general, general)?,
        })
    }

    fn rows(&self) -> Rows {
        Rows {
            train: self.train.len(),
            dev: self.dev.len(),
            test: self.test.len(),
            general: self.general.len(),
        }
    }
}

/// Blocks of each part of a task; reads and tokenizes its texts.
pub(super) fn sizes(task: &Task, tokenizer: &LlamaTokenizer) -> Result<Rows> {
    Ok(Parts::new(task, tokenizer)?.rows())
}

struct LanguageModel<'a> {
    parts: &'a Parts,
    /// The blocks that are learned now, shuffled again each epoch.
    order: Vec<usize>,
    batch_size: usize,
    checkpointing: bool,
}

impl Learnable for LanguageModel<'_> {
    type Model = Llama;
    type Batch = LmBatch;

    fn rows(&self) -> usize {
        self.order.len()
    }

    fn learn(&mut self, share: Option<(usize, usize)>) {
        let all = &self.parts.train.chosen;
        self.order = match share {
            Some((index, of)) => parts::share(all, index, of),
            None => all.clone(),
        };
    }

    fn batches(&mut self, order: &mut StdRng) -> Vec<Vec<usize>> {
        self.order.shuffle(order);
        let batches = self.order.chunks(self.batch_size);
        batches.map(<[usize]>::to_vec).collect()
    }

    fn batch(&self, rows: &[usize]) -> (LmBatch, usize) {
        let batch = self.parts.train.data.batch(rows);
        let tokens = batch.rows * batch.length;
        (batch, tokens)
    }

    fn gradients(&self, model: &Llama, batch: LmBatch) -> (f64, GradientsParams) {
        let scale = 1.0 / batch.target_count() as f64;
        let (sum, gradients) = model.loss_and_gradients(&batch, self.checkpointing, scale);
        (sum * scale, gradients)
    }

    fn dev(&self, model: &Llama) -> f64 {
        self.parts.dev.loss(&model.valid())
    }
}

/// The scores of the model as it came.
struct Untrained {
    dev: f64,
    test: f64,
    general: f64,
}

impl Untrained {
    fn of(model: &Llama, parts: &Parts) -> Self {
        Self {
            dev: parts.dev.loss(model),
            test: parts.test.loss(model),
            general: parts.general.loss(model),
        }
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
    let folder = job.model_folder()?;
    let tokenizer = LlamaTokenizer::load(&folder)?;
    let parts = Parts::new(&job.task, &tokenizer)?;
    let base = Llama::load(&folder, &device)?;
    let model_parameters = base.num_params() as u64;
    let block = first_block(&parts.test, &inner);
    let call = |model: &Llama| {
        let mut cache = model.cache();
        let _ = model.next_logits(block.clone(), &mut cache).into_data();
    };

    let before = Untrained::of(&base.valid(), &parts);
    let settings = &job.task.training;
    let start = Progress {
        step: 0,
        steps: settings.epochs * parts.train.chosen.len().div_ceil(settings.batch_size),
        loss: before.dev,
    };
    if !progress(start) {
        return Err(Error::Stopped { done: 0, total: 1 });
    }
    let mut curve = vec![Epoch {
        epoch: 0,
        train_loss: f64::NAN,
        dev: before.dev,
    }];
    let mut measured = Measured {
        model_parameters,
        rows: parts.rows(),
        baseline: before.test,
        curve: Vec::new(),
        test: before.test,
        forgetting: Some(Forgetting {
            before: before.general,
            after: before.general,
        }),
        counts: nothing(model_parameters),
        adapter_bytes: 0,
        step_s: Vec::new(),
        tokens: 0,
        memory: Memory {
            peak_bytes: 0,
            baseline_bytes: measure::resident(),
        },
        latency_ms: Latency {
            base: 0.0,
            unmerged: 0.0,
            merged: None,
        },
    };
    if method.info().name == UNTRAINED.name {
        let untrained = base.valid();
        let mut once = || call(&untrained);
        let ms = measure::interleaved(LATENCY_ROUNDS, &mut [&mut once])[0];
        (measured.latency_ms.base, measured.latency_ms.unmerged) = (ms, ms);
        measured.curve = curve;
        return Ok(measured);
    }

    // From here on nothing but the job draws from it.
    device.seed(job.seed);
    let mut task = LanguageModel {
        parts: &parts,
        order: parts.train.chosen.clone(),
        batch_size: settings.batch_size,
        checkpointing: settings.gradient_checkpointing,
    };
    let base = parts::train(built_from, &mut task, base, progress)?;
    let examples = parts.train.chosen.iter().take(EXAMPLES).copied();
    let model = base.attach_on("compared", method, examples, |model, row| {
        model.loss(&parts.train.data.batch(&[row]))
    })?;
    // Full fine-tuning would keep it in memory beside its own weights.
    drop(base);
    measured.counts = parts::counted(built_from, &model, counts(&model))?;
    let fitted = fit(job, &mut task, model, progress)?;
    let tuned = fitted.model.valid();
    curve.extend(fitted.curve);
    measured.curve = curve;
    measured.test = parts.test.loss(&tuned);
    measured.forgetting = Some(Forgetting {
        before: before.general,
        after: parts.general.loss(&tuned),
    });
    measured.adapter_bytes = saved_bytes(&fitted.model)?;
    measured.latency_ms = latency(&tuned, method, LATENCY_ROUNDS, call)?;
    measured.step_s = fitted.step_s;
    measured.tokens = fitted.tokens;
    measured.memory = fitted.memory;
    Ok(measured)
}

/// The counts of a model that nothing is attached to.
fn nothing(parameters: u64) -> Counts {
    Counts {
        trainable: 0,
        changed: 0,
        stored: 0,
        total: parameters,
        head: 0,
    }
}

/// Token ids of the first block, `[1, length]`.
fn first_block(blocks: &Blocks, device: &Device) -> Tensor<2, Int> {
    let batch = blocks.data.batch(&blocks.chosen[..1]);
    let ids: Vec<i64> = batch.ids.iter().map(|id| i64::from(*id)).collect();
    Tensor::from_data(TensorData::new(ids, [1, batch.length]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_blocks_are_of_the_whole_text() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(3, 3), [0, 1, 2]);
        assert!(spread(3, 0).is_empty());
    }
}

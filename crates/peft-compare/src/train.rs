//! Carries out one job.

use std::time::Instant;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::{Method, PeftModule};
use peft_models::{Bert, BertClassifier, Pooling, Tokenizer};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::definition::Training;
use crate::job::{Job, Outcome};
use crate::measure;
use crate::record::{Counts, Epoch, Latency, Memory, StepTime};
use crate::statistics::percentile;
use crate::{Error, Result};

/// The head of the classifiers.
const HEAD: &str = "classifier";
/// Rounds of the latency measurement.
const LATENCY_ROUNDS: usize = 30;

/// What a job says while it runs.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Steps to do.
    pub steps: usize,
    /// Loss of the last step.
    pub loss: f64,
}

/// Tokenized rows with their classes.
struct Rows {
    tokens: Vec<Vec<u32>>,
    labels: Vec<i64>,
}

impl Rows {
    fn batch(
        &self,
        rows: &[usize],
        tokenizer: &Tokenizer,
        device: &Device,
    ) -> (Inputs, Tensor<1, Int>) {
        let tokens: Vec<&Vec<u32>> = rows.iter().map(|row| &self.tokens[*row]).collect();
        let tokens: Vec<&[u32]> = tokens.into_iter().map(Vec::as_slice).collect();
        let (ids, padding) = tokenizer.batch(&tokens).to_device(device);
        let labels: Vec<i64> = rows.iter().map(|row| self.labels[*row]).collect();
        let labels = Tensor::from_data(TensorData::new(labels, [rows.len()]), device);
        ((ids, padding), labels)
    }
}

type Inputs = (Tensor<2, Int>, Option<Tensor<2, burn::tensor::Bool>>);

/// Trains, evaluates and measures; `progress` is told of every step and says whether to go on.
///
/// # Errors
///
/// Missing or unexpected data, a model or method that cannot be used; [`Error::Stopped`] if
/// `progress` says so.
pub fn run(job: &Job, mut progress: impl FnMut(Progress) -> bool) -> Result<Outcome> {
    let started_at = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let start = Instant::now();
    let inner = peft_core::device::device(&job.device)?;
    let device = inner.clone().autodiff();
    device.seed(job.seed);

    let (data, split) = job.rows()?;
    let folder = job.model_folder()?;
    let tokenizer = Tokenizer::load(&folder)?;
    let texts: Vec<&str> = data.rows.iter().map(|row| row.text.as_str()).collect();
    let rows = Rows {
        tokens: tokenizer.encode(&texts, job.task.max_len)?,
        labels: data.rows.iter().map(|row| row.label as i64).collect(),
    };
    let bert = Bert::load(&folder, &device)?;
    let model_parameters = bert.num_params() as u64;
    let method = job.configured(&[HEAD])?;
    let model = {
        let classes = data.labels.len();
        let base = BertClassifier::new_head(bert, classes, Pooling::Mean, 0.0, &device)?;
        base.attach("compared", method.as_ref())?
    };
    let counts = model.counts();

    let baseline_bytes = measure::resident();
    measure::reset_peak();
    let trained = train(
        job,
        model,
        &rows,
        &split.train,
        &split.dev,
        &tokenizer,
        &mut progress,
    )?;
    let memory = Memory {
        peak_bytes: trained.peak_bytes,
        baseline_bytes,
    };

    let model = trained.model;
    let dev = trained.curve.last().map_or(f64::NAN, |epoch| epoch.dev);
    let test = evaluate(&model, &rows, &split.test, &tokenizer, &inner);
    let longest = (0..rows.tokens.len())
        .max_by_key(|row| rows.tokens[*row].len())
        .unwrap_or(0);
    let one = rows.batch(&[longest], &tokenizer, &inner).0;
    let latency_ms = latency(&model, method.as_ref(), &one)?;
    let finite = dev.is_finite() && test.is_finite();
    Ok(Outcome {
        job: job.clone(),
        started_at,
        wall_s: start.elapsed().as_secs_f64(),
        model_parameters,
        rows: [&split.train, &split.dev, &split.test].map(|part| part.len() as u64),
        majority: majority(&rows, &split.test, data.labels.len()),
        curve: trained.curve,
        dev,
        test,
        counts: Counts {
            trainable: counts.adapter_trainable() as u64,
            changed: counts.changed as u64,
            stored: counts.stored as u64,
            total: counts.total as u64,
            head: counts.saved_modules as u64,
        },
        adapter_bytes: saved_bytes(&model)?,
        step_s: StepTime {
            median: percentile(&trained.step_s, 50.0).unwrap_or_default(),
            p90: percentile(&trained.step_s, 90.0).unwrap_or_default(),
        },
        tokens_per_s: trained.tokens as f64 / trained.step_s.iter().sum::<f64>(),
        memory,
        latency_ms,
        git: crate::environment::git(),
        environment: crate::environment::environment(&job.device),
        notes: if finite {
            Vec::new()
        } else {
            vec!["training diverged".to_string()]
        },
    })
}

struct Trained {
    model: BertClassifier,
    curve: Vec<Epoch>,
    step_s: Vec<f64>,
    tokens: usize,
    peak_bytes: u64,
}

fn train(
    job: &Job,
    mut model: BertClassifier,
    rows: &Rows,
    train: &[usize],
    dev: &[usize],
    tokenizer: &Tokenizer,
    progress: &mut impl FnMut(Progress) -> bool,
) -> Result<Trained> {
    let settings = &job.task.training;
    let inner = peft_core::device::device(&job.device)?;
    let device = inner.clone().autodiff();
    let steps = settings.epochs * train.len().div_ceil(settings.batch_size);
    let mut optimizer = AdamWConfig::new()
        .with_weight_decay(settings.weight_decay as f32)
        .init();
    let loss_of = CrossEntropyLossConfig::new().init(&device);
    let mut order = StdRng::seed_from_u64(job.seed);
    let mut train = train.to_vec();
    let mut trained = (Vec::new(), Vec::new(), 0_usize);
    let (curve, step_s, tokens) = (&mut trained.0, &mut trained.1, &mut trained.2);
    let mut step = 0;
    let mut peak_bytes = 0;
    for epoch in 1..=settings.epochs {
        let mut total = 0.0;
        for chunk in batches(&mut train, rows, settings, &mut order) {
            let ((ids, padding), labels) = rows.batch(&chunk, tokenizer, &device);
            let count = ids.dims().iter().product::<usize>();
            let start = Instant::now();
            let loss = loss_of.forward(model.forward(ids, padding), labels);
            let value = f64::from(loss.clone().into_scalar::<f32>());
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            let gradients = clipped(gradients, &model, settings.clip_norm);
            let rate = job.learning_rate * schedule(step, steps, settings.warmup);
            model = optimizer.step(rate, model, gradients);
            let _ = device.sync();
            // The first steps allocate what the others reuse.
            if step >= 2 || steps <= 4 {
                step_s.push(start.elapsed().as_secs_f64());
                *tokens += count;
            }
            step += 1;
            total += value * chunk.len() as f64;
            if !progress(Progress {
                step,
                steps,
                loss: value,
            }) {
                return Err(Error::Stopped { done: 0, total: 1 });
            }
        }
        let train_loss = total / train.len() as f64;
        // The peak is that of training: evaluation has other batches.
        peak_bytes = peak_bytes.max(measure::peak());
        let dev = evaluate(&model, rows, dev, tokenizer, &inner);
        measure::reset_peak();
        let dev = if train_loss.is_finite() {
            dev
        } else {
            f64::NAN
        };
        curve.push(Epoch {
            epoch: epoch as u64,
            train_loss,
            dev,
        });
    }
    let (curve, step_s, tokens) = trained;
    Ok(Trained {
        model,
        curve,
        step_s,
        tokens,
        peak_bytes,
    })
}

/// One epoch's batches, in random order. Grouped by length, rows are sorted within blocks of
/// eight batches, so that batches still differ from epoch to epoch.
fn batches(
    train: &mut [usize],
    rows: &Rows,
    settings: &Training,
    order: &mut StdRng,
) -> Vec<Vec<usize>> {
    train.shuffle(order);
    if settings.group_by_length {
        for block in train.chunks_mut(8 * settings.batch_size) {
            block.sort_by_key(|row| rows.tokens[*row].len());
        }
    }
    let mut batches: Vec<_> = train
        .chunks(settings.batch_size)
        .map(<[usize]>::to_vec)
        .collect();
    if settings.group_by_length {
        batches.shuffle(order);
    }
    batches
}

/// Linear rise over the first `warmup` of the steps, linear fall to 0 after, as the peer's.
fn schedule(step: usize, steps: usize, warmup: f64) -> f64 {
    let rise = (steps as f64 * warmup).floor();
    let step = step as f64;
    if step < rise {
        step / rise
    } else {
        (steps as f64 - step) / (steps as f64 - rise).max(1.0)
    }
}

/// Gathers the squared norms of all gradients.
struct Norm<'a> {
    gradients: &'a GradientsParams,
    squares: Vec<Tensor<1>>,
}

impl ModuleVisitor for Norm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.squares.push((gradient.clone() * gradient).sum());
        }
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    factor: f64,
}

impl Scale<'_> {
    fn scale<const D: usize>(&mut self, id: ParamId) {
        if let Some(gradient) = self.gradients.remove::<D>(id) {
            self.gradients.register(id, gradient * self.factor);
        }
    }
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.scale::<D>(param.id);
    }
}

/// Gradients scaled so that their common norm is at most `most`, as torch's `clip_grad_norm_`
/// does; Burn clips every tensor by itself.
fn clipped(mut gradients: GradientsParams, model: &BertClassifier, most: f64) -> GradientsParams {
    let mut norm = Norm {
        gradients: &gradients,
        squares: Vec::new(),
    };
    model.visit(&mut norm);
    if norm.squares.is_empty() {
        return gradients;
    }
    let squares = Tensor::cat(norm.squares, 0).sum().into_scalar::<f32>();
    let factor = most / (f64::from(squares).sqrt() + 1e-6);
    if factor < 1.0 {
        model.visit(&mut Scale {
            gradients: &mut gradients,
            factor,
        });
    }
    gradients
}

/// Share of rows whose class is the most probable one.
fn evaluate(
    model: &BertClassifier,
    rows: &Rows,
    part: &[usize],
    tokenizer: &Tokenizer,
    device: &Device,
) -> f64 {
    let model = model.valid();
    // Rows of like length together: less padding, same answer.
    let mut sorted = part.to_vec();
    sorted.sort_by_key(|row| rows.tokens[*row].len());
    let mut right = 0;
    for chunk in sorted.chunks(64) {
        let ((ids, padding), labels) = rows.batch(chunk, tokenizer, device);
        let logits = model.forward(ids, padding);
        if !logits.clone().into_data().iter::<f64>().all(f64::is_finite) {
            return f64::NAN;
        }
        let answers: Tensor<1, Int> = logits.argmax(1).squeeze_dim(1);
        right += answers.equal(labels).int().sum().into_scalar::<i64>();
    }
    right as f64 / part.len() as f64
}

fn majority(rows: &Rows, part: &[usize], classes: usize) -> f64 {
    let count = |class: usize| {
        part.iter()
            .filter(|row| rows.labels[**row] == class as i64)
            .count()
    };
    let most = (0..classes).map(count).max().unwrap_or(0);
    most as f64 / part.len() as f64
}

/// Median latencies of the base, the adapted and the merged model, in turn.
fn latency(model: &BertClassifier, method: &dyn Method, input: &Inputs) -> Result<Latency> {
    let adapted = model.valid();
    let base = adapted.disable_adapters()?;
    let merged = if method.info().mergeable {
        Some(adapted.merge_and_unload()?)
    } else {
        None
    };
    let call = |model: &BertClassifier| {
        let _ = model.forward(input.0.clone(), input.1.clone()).into_data();
    };
    let mut run_base = || call(&base);
    let mut run_adapted = || call(&adapted);
    let mut run_merged = || merged.iter().for_each(call);
    let times = measure::in_turn(
        LATENCY_ROUNDS,
        &mut [&mut run_base, &mut run_adapted, &mut run_merged],
    );
    Ok(Latency {
        base: times[0],
        unmerged: times[1],
        merged: merged.is_some().then_some(times[2]),
    })
}

/// Bytes of what has to be kept: the adapter's folder, or the whole model where there is none.
fn saved_bytes(model: &BertClassifier) -> Result<u64> {
    let dir = tempfile::tempdir().map_err(crate::error::io(&std::env::temp_dir()))?;
    match model.adapters().first() {
        Some(name) => model.save_adapter(name, dir.path())?,
        None => model.save_model(dir.path().join("model.safetensors"))?,
    }
    let files = std::fs::read_dir(dir.path()).map_err(crate::error::io(dir.path()))?;
    Ok(files
        .filter_map(|file| file.ok()?.metadata().ok())
        .map(|data| data.len())
        .sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_rises_and_falls_like_the_peers() {
        assert!(schedule(0, 100, 0.1).abs() < 1e-12);
        assert!((schedule(5, 100, 0.1) - 0.5).abs() < 1e-12);
        assert!((schedule(10, 100, 0.1) - 1.0).abs() < 1e-12);
        assert!((schedule(55, 100, 0.1) - 0.5).abs() < 1e-12);
        assert!(schedule(99, 100, 0.1) > 0.0);
    }

    #[test]
    fn gradients_are_clipped_by_their_common_norm() {
        let (_, inner) = &peft_core::device::cpu_devices()[0];
        let device = inner.clone().autodiff();
        let bert = Bert::tiny(&device);
        let model = BertClassifier::new_head(bert, 2, Pooling::Mean, 0.0, &device).unwrap();
        let ids = Tensor::<2, Int>::from_data([[5, 6, 7], [8, 9, 10]], &device);
        let loss = (model.forward(ids, None) * 1e3).sum();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let norm = |gradients: &GradientsParams| {
            let mut norm = Norm {
                gradients,
                squares: Vec::new(),
            };
            model.visit(&mut norm);
            Tensor::cat(norm.squares, 0)
                .sum()
                .into_scalar::<f32>()
                .sqrt()
        };
        assert!(norm(&gradients) > 10.0);
        let gradients = clipped(gradients, &model, 1.0);
        assert!(
            (norm(&gradients) - 1.0).abs() < 1e-3,
            "{}",
            norm(&gradients)
        );
    }
}

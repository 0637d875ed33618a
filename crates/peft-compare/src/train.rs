//! Carries out one job.

mod classification;
mod fit;
mod language_model;

use std::time::Instant;

use peft_core::PeftModule;
use peft_core::method::Method;
use peft_models::LlamaTokenizer;

use crate::Result;
use crate::definition::{Kind, Task};
use crate::job::{Job, Outcome, model_folder, rows};
use crate::measure;
use crate::record::{Counts, Epoch, Forgetting, Latency, Memory, Rows, StepTime};
use crate::registry::Registry;
use crate::statistics::percentile;

/// Training rows that a method is given statistics of, one by one, if it asks for some.
const EXAMPLES: usize = 128;

/// What a job says while it runs.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Steps to do.
    pub steps: usize,
    /// Loss of the last step; before the first, that on dev.
    pub loss: f64,
}

/// What comes out of a run, whatever its kind.
struct Measured {
    model_parameters: u64,
    rows: Rows,
    baseline: f64,
    curve: Vec<Epoch>,
    test: f64,
    forgetting: Option<Forgetting>,
    counts: Counts,
    adapter_bytes: u64,
    /// Seconds of the timed steps.
    step_s: Vec<f64>,
    /// Their tokens.
    tokens: usize,
    memory: Memory,
    latency_ms: Latency,
}

/// Trains, evaluates and measures; `progress` is told of every step and says whether to go on.
///
/// # Errors
///
/// Missing or unexpected data, a model or method that cannot be used; [`Error::Stopped`](crate::Error::Stopped) if
/// `progress` says so.
pub fn run(
    job: &Job,
    registry: &Registry,
    mut progress: impl FnMut(Progress) -> bool,
) -> Result<Outcome> {
    let started_at = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let start = Instant::now();
    let method = job.configured(registry)?;
    let measured = match job.task.kind {
        Kind::Classification => classification::run(job, method.as_ref(), &mut progress)?,
        Kind::LanguageModel => language_model::run(job, method.as_ref(), &mut progress)?,
    };
    let Measured {
        curve,
        test,
        forgetting,
        step_s,
        tokens,
        ..
    } = measured;
    let dev = curve.last().map_or(f64::NAN, |epoch| epoch.dev);
    let after = forgetting.map_or(0.0, |forgetting| forgetting.after);
    let finite = dev.is_finite() && test.is_finite() && after.is_finite();
    let seconds: f64 = step_s.iter().sum();
    Ok(Outcome {
        job: job.clone(),
        started_at,
        wall_s: start.elapsed().as_secs_f64(),
        model_parameters: measured.model_parameters,
        rows: measured.rows,
        baseline: measured.baseline,
        curve,
        dev,
        test,
        forgetting,
        counts: measured.counts,
        adapter_bytes: measured.adapter_bytes,
        step_s: StepTime {
            median: percentile(&step_s, 50.0).unwrap_or_default(),
            p90: percentile(&step_s, 90.0).unwrap_or_default(),
        },
        tokens_per_s: if seconds > 0.0 {
            tokens as f64 / seconds
        } else {
            0.0
        },
        memory: measured.memory,
        latency_ms: measured.latency_ms,
        git: crate::environment::git(),
        environment: crate::environment::environment(&job.device),
        notes: if finite {
            Vec::new()
        } else {
            vec!["training diverged".to_string()]
        },
    })
}

/// Rows of each split of a task; running text is tokenized for it.
///
/// # Errors
///
/// Missing or unexpected data, a model folder without a tokenizer.
pub fn sizes(task: &Task) -> Result<Rows> {
    match task.kind {
        Kind::Classification => {
            let (_, split) = rows(task)?;
            Ok(Rows {
                train: split.train.len() as u64,
                dev: split.dev.len() as u64,
                test: split.test.len() as u64,
                general: 0,
            })
        }
        Kind::LanguageModel => {
            let tokenizer = LlamaTokenizer::load(model_folder(&task.model)?)?;
            language_model::sizes(task, &tokenizer)
        }
    }
}

/// The counts of a model with a method attached.
fn counts<M: PeftModule>(model: &M) -> Counts {
    let counts = model.counts();
    Counts {
        trainable: counts.adapter_trainable() as u64,
        changed: counts.changed as u64,
        stored: counts.stored as u64,
        total: counts.total as u64,
        head: counts.saved_modules as u64,
    }
}

/// Median latencies of the base, the adapted and the merged model, in turn; `call` runs a model once.
fn latency<M: PeftModule>(
    model: &M,
    method: &dyn Method,
    rounds: usize,
    call: impl Fn(&M),
) -> Result<Latency> {
    let adapted = model.valid();
    let base = adapted.disable_adapters()?;
    let merged = if method.info().mergeable {
        Some(adapted.merge_and_unload()?)
    } else {
        None
    };
    let mut run_base = || call(&base);
    let mut run_adapted = || call(&adapted);
    let mut run_merged = || merged.iter().for_each(&call);
    let times = measure::interleaved(
        rounds,
        &mut [&mut run_base, &mut run_adapted, &mut run_merged],
    );
    Ok(Latency {
        base: times[0],
        unmerged: times[1],
        merged: merged.is_some().then_some(times[2]),
    })
}

/// Bytes of what has to be kept: the adapter's folder, or the whole model where there is none.
fn saved_bytes<M: PeftModule>(model: &M) -> Result<u64> {
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

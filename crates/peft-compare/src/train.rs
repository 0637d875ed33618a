//! Carries out one job.

mod classification;
mod fit;
mod language_model;
mod parts;

use std::path::Path;
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
    let parts = parts::of(job, registry)?;
    let measured = match job.task.kind {
        Kind::Classification => classification::run(job, method.as_ref(), &parts, &mut progress)?,
        Kind::LanguageModel => language_model::run(job, method.as_ref(), &parts, &mut progress)?,
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
        notes: (!finite)
            .then(|| "training diverged".to_string())
            .into_iter()
            .chain(parts::note(&parts))
            .collect(),
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
    let merged = if method.promises().mergeable {
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

/// Bytes of what has to be kept: the adapters' folders, or the whole model where there is none.
fn saved_bytes<M: PeftModule>(model: &M) -> Result<u64> {
    let dir = tempfile::tempdir().map_err(crate::error::io(&std::env::temp_dir()))?;
    let adapters = model.adapters();
    if adapters.is_empty() {
        model.save_model(dir.path().join("model.safetensors"))?;
        return bytes_in(dir.path());
    }
    let mut bytes = 0;
    for name in &adapters {
        let folder = dir.path().join(name);
        model.save_adapter(name, &folder)?;
        bytes += bytes_in(&folder)?;
    }
    Ok(bytes)
}

/// Bytes of the files in a folder.
fn bytes_in(dir: &Path) -> Result<u64> {
    let files = std::fs::read_dir(dir).map_err(crate::error::io(dir))?;
    Ok(files
        .filter_map(|file| file.ok()?.metadata().ok())
        .map(|data| data.len())
        .sum())
}

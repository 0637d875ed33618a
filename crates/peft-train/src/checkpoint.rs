//! Checkpoints: folders from which a run is resumed with the same numbers, to the last bit.
//!
//! | file | holds |
//! |---|---|
//! | `adapter_config.json`, `adapter_model.safetensors` | the adapter, as `save_adapter` writes it; in a folder of its name each if there are several |
//! | `trained.safetensors` | all values that training changes, by their paths in the model |
//! | `optimizer.safetensors` | the optimizer's state, by the same paths |
//! | `schedule.safetensors` | what the adapter's method remembers from step to step (`peft_core::TrainingHooks`) |
//! | `best.safetensors` | the values with the lowest held-out loss, with `keep_best` |
//! | `trainer_state.json` | step, losses, evaluations, configuration, rates of groups, digests of base and data |
//!
//! A folder gets its name, `checkpoint-<step>`, when all of it is on the disk, and older ones are deleted after
//! that: whenever a run is killed, and whatever the disk refuses, the last checkpoint is whole. The output folder
//! is one run's at a time (`.lock`); what killed runs left unfinished is deleted when the next one begins.

use std::fs;
use std::path::{Path, PathBuf};

use peft_core::checkpoint::write_tensors;
use peft_core::files::{self, NewFolder};
use peft_core::{PeftModule, TrainingHooks};
use peft_models::Moment;

use crate::checkpoints::PREFIX;
use crate::error::io;
use crate::optimizer::AdamW;
use crate::output::Output;
use crate::run::Run;
use crate::state::State;
use crate::tensors::{self, Tensors};
use crate::{Error, Result, trained};

pub use crate::checkpoints::{
    BEST_FILE, OPTIMIZER_FILE, SCHEDULE_FILE, STATE_FILE, TRAINED_FILE, latest, list,
};

/// The time that the run of a checkpoint gave to chat templates. Data with dates in them are made anew with it:
///
/// ```no_run
/// # use peft_train::{TrainConfig, checkpoint};
/// # fn main() -> peft_train::Result<()> {
/// let mut config = TrainConfig::new();
/// let newest = checkpoint::latest("runs/mine".as_ref())?;
/// if let Some(newest) = &newest {
///     config = config.with_time(checkpoint::time(newest)?);
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`Error::Io`], and [`Error::Resume`] if it is no checkpoint.
pub fn time(path: &Path) -> Result<Moment> {
    Ok(state(path)?.time())
}

/// Writes a checkpoint and deletes all but the `keep` newest of those up to it. After an error, those that were
/// there are there.
pub(crate) fn save<M: PeftModule>(
    output: &Output,
    run: &Run,
    model: &M,
    keep: usize,
) -> Result<PathBuf> {
    let step = run.state.step;
    let path = output.dir().join(format!("{PREFIX}{step}"));
    let folder = NewFolder::new(&path)?;
    let place = folder.path();
    let adapters = model.adapters();
    for name in &adapters {
        model.save_adapter(name, folder_of(place, name, adapters.len()))?;
    }
    write_tensors(&place.join(TRAINED_FILE), &trained::values(model))?;
    write_tensors(&place.join(OPTIMIZER_FILE), &run.optimizer.state(model))?;
    run.training.save(place.join(SCHEDULE_FILE))?;
    if let Some(best) = &run.best {
        write_tensors(&place.join(BEST_FILE), best)?;
    }
    let text = serde_json::to_string_pretty(&run.state).expect("a state is JSON");
    files::write(place.join(STATE_FILE), text)?;
    folder.commit()?;
    output.thin(step, keep)?;
    Ok(path)
}

/// What [`load`] gives.
pub(crate) struct Loaded<M> {
    pub(crate) model: M,
    pub(crate) state: State,
    pub(crate) training: TrainingHooks,
    pub(crate) best: Option<Tensors>,
}

fn wrong(path: &Path, reason: String) -> Error {
    Error::Resume {
        path: path.into(),
        reason,
    }
}

fn state(path: &Path) -> Result<State> {
    let file = path.join(STATE_FILE);
    let text = fs::read_to_string(&file).map_err(io(&file))?;
    serde_json::from_str(&text).map_err(|error| wrong(&file, format!("no state of a run: {error}")))
}

/// A copy of `model` with a checkpoint's values.
///
/// A method may train something else from a step on. Then the adapters in the checkpoint have another form than fresh
/// ones of the same configuration, and are read from their own files first.
fn restored<M: PeftModule>(path: &Path, model: &M, values: &Tensors) -> Result<M, String> {
    let Err(reason) = trained::fit(model, values) else {
        return trained::restored(model.clone(), values);
    };
    let adapters = model.summary().adapters;
    let read = adapters.iter().try_fold(model.clone(), |model, adapter| {
        let folder = folder_of(path, &adapter.name, adapters.len());
        model.swap_adapter(&adapter.name, folder, &[adapter.info])
    });
    match read {
        Ok(read) => trained::restored(read, values).map_err(|_| reason),
        Err(_) => Err(reason),
    }
}

/// Where a checkpoint of `count` adapters has that one.
fn folder_of(path: &Path, name: &str, count: usize) -> PathBuf {
    if count == 1 {
        path.to_path_buf()
    } else {
        path.join(name)
    }
}

/// A copy of `model` with a checkpoint's values, and `optimizer` with its moments; `fresh` is the run's state
/// before its first step.
pub(crate) fn load<M: PeftModule>(
    path: &Path,
    model: &M,
    optimizer: &mut AdamW,
    fresh: &State,
) -> Result<Loaded<M>> {
    let state = state(path)?;
    if let Some(reason) = fresh.conflict(&state) {
        return Err(wrong(path, reason));
    }
    let file = path.join(TRAINED_FILE);
    let values = tensors::read(&file)?;
    let model = restored(path, model, &values).map_err(|reason| wrong(&file, reason))?;
    let file = path.join(OPTIMIZER_FILE);
    let moments = tensors::read(&file)?;
    optimizer
        .restore(&model, moments)
        .map_err(|reason| wrong(&file, reason))?;
    let training = TrainingHooks::resume(&model, fresh.steps(), path.join(SCHEDULE_FILE))?;
    let best = if state.keeps_best() {
        let file = path.join(BEST_FILE);
        let best = tensors::read(&file)?;
        trained::fit(&model, &best).map_err(|reason| wrong(&file, reason))?;
        Some(best)
    } else {
        None
    };
    Ok(Loaded {
        model,
        state,
        training,
        best,
    })
}

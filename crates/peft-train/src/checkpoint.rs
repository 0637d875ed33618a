//! Checkpoints: folders from which a run goes on with the same numbers, to the last bit.
//!
//! | file | holds |
//! |---|---|
//! | `adapter_config.json`, `adapter_model.safetensors` | the adapter, as `save_adapter` writes it; in a folder of its name each if there are several |
//! | `trained.safetensors` | all values that training changes, by their paths in the model |
//! | `optimizer.safetensors` | the optimizer's state, by the same paths |
//! | `schedule.safetensors` | what the adapter's method remembers from step to step (`peft_core::Training`) |
//! | `best.safetensors` | the values with the lowest held-out loss, with `keep_best` |
//! | `trainer_state.json` | step, losses, evaluations, configuration, rates of groups, digests of base and data |
//!
//! A folder gets its name, `checkpoint-<step>`, when all of it is on the disk.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use peft_core::{PeftModule, Training};

use crate::error::io;
use crate::optimizer::AdamW;
use crate::state::State;
use crate::tensors::{self, Tensors};
use crate::{Error, Result, trained};

/// File name of what training changed.
pub const TRAINED_FILE: &str = "trained.safetensors";
/// File name of the optimizer's state.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// File name of what the adapters' methods remember.
pub const SCHEDULE_FILE: &str = "schedule.safetensors";
/// File name of the best values.
pub const BEST_FILE: &str = "best.safetensors";
/// File name of where the run is.
pub const STATE_FILE: &str = "trainer_state.json";
const PREFIX: &str = "checkpoint-";

/// The checkpoints in `dir` with their steps, oldest first; none if there is no such folder.
///
/// # Errors
///
/// [`Error::Io`] if the folder cannot be read.
pub fn list(dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        let name = path.file_name().and_then(OsStr::to_str);
        let step = name.and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        if let Some(step) = step {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The checkpoint in `dir` with the most steps, if there is one.
///
/// # Errors
///
/// [`Error::Io`] if the folder cannot be read.
pub fn latest(dir: &Path) -> Result<Option<PathBuf>> {
    Ok(list(dir)?.pop().map(|(_, path)| path))
}

/// Refuses a folder with checkpoints that are not of this run, which goes on at `step`, from `resumed` if from
/// any: they would be taken for its own later.
pub(crate) fn refuse_others(dir: &Path, resumed: Option<&Path>, step: usize) -> Result<()> {
    let place = resumed.and_then(|path| path.canonicalize().ok());
    let place = place.as_deref().and_then(Path::parent);
    let own = place.is_some() && place == dir.canonicalize().ok().as_deref();
    let mut found = list(dir)?.into_iter().rev();
    match found.find(|(found, _)| !own || *found > step) {
        Some((_, path)) => Err(Error::Occupied { path }),
        None => Ok(()),
    }
}

/// Writes a checkpoint into `dir` and deletes all but the `keep` newest of those up to it.
pub(crate) fn save<M: PeftModule>(
    dir: &Path,
    model: &M,
    optimizer: &AdamW,
    training: &Training,
    best: Option<&Tensors>,
    state: &State,
    keep: usize,
) -> Result<PathBuf> {
    let step = state.step;
    let path = dir.join(format!("{PREFIX}{step}"));
    let partial = dir.join(format!(".{PREFIX}{step}.partial"));
    remove(&partial)?;
    fs::create_dir_all(&partial).map_err(io(&partial))?;
    let adapters = model.adapters();
    for name in &adapters {
        let folder = if adapters.len() == 1 {
            partial.clone()
        } else {
            partial.join(name)
        };
        model.save_adapter(name, folder)?;
    }
    tensors::write(&partial.join(TRAINED_FILE), &trained::values(model))?;
    tensors::write(&partial.join(OPTIMIZER_FILE), &optimizer.state(model))?;
    training.save(partial.join(SCHEDULE_FILE))?;
    if let Some(best) = best {
        tensors::write(&partial.join(BEST_FILE), best)?;
    }
    let text = serde_json::to_string_pretty(state).expect("a state is JSON");
    tensors::write_bytes(&partial.join(STATE_FILE), text.as_bytes())?;
    remove(&path)?;
    fs::rename(&partial, &path).map_err(io(&path))?;
    let mut own = list(dir)?;
    own.retain(|(found, _)| *found <= step);
    for (_, old) in &own[..own.len().saturating_sub(keep)] {
        remove(old)?;
    }
    Ok(path)
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(io(dir))?;
    }
    Ok(())
}

/// What [`load`] gives.
pub(crate) struct Loaded<M> {
    pub(crate) model: M,
    pub(crate) state: State,
    pub(crate) training: Training,
    pub(crate) best: Option<Tensors>,
}

/// Puts a checkpoint into `model` and `optimizer`; `fresh` is the run's state before its first step.
pub(crate) fn load<M: PeftModule>(
    path: &Path,
    model: M,
    optimizer: &mut AdamW,
    fresh: &State,
) -> Result<Loaded<M>> {
    let wrong = |path: &Path, reason: String| Error::Resume {
        path: path.into(),
        reason,
    };
    let file = path.join(STATE_FILE);
    let text = fs::read_to_string(&file).map_err(io(&file))?;
    let state: State = serde_json::from_str(&text)
        .map_err(|error| wrong(&file, format!("no state of a run: {error}")))?;
    if let Some(reason) = fresh.conflict(&state) {
        return Err(wrong(path, reason));
    }
    let file = path.join(TRAINED_FILE);
    let values = tensors::read(&file)?;
    let model = trained::restored(model, &values).map_err(|reason| wrong(&file, reason))?;
    let file = path.join(OPTIMIZER_FILE);
    let moments = tensors::read(&file)?;
    optimizer
        .restore(&model, moments)
        .map_err(|reason| wrong(&file, reason))?;
    let training = Training::resume(&model, fresh.steps(), path.join(SCHEDULE_FILE))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_ordered_by_their_steps() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            "checkpoint-9",
            "checkpoint-10",
            ".checkpoint-11.partial",
            "logs",
            "checkpoint-x",
        ];
        for name in names {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let steps: Vec<usize> = list(dir.path())
            .unwrap()
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(steps, [9, 10]);
        let newest = latest(dir.path()).unwrap().unwrap();
        assert!(newest.ends_with("checkpoint-10"));
        assert_eq!(latest(&dir.path().join("nothing")).unwrap(), None);
    }
}

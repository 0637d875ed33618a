//! Which checkpoints a folder has, and which of them are whole.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::io;
use crate::{Result, tensors};

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
pub(crate) const PREFIX: &str = "checkpoint-";

/// The checkpoints in `dir` with their steps, oldest first; none if there is no such folder.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io) if the folder cannot be read.
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

/// The complete checkpoint in `dir` with the most steps, if there is one. Damaged ones, of which files are
/// missing or cut off, are passed over.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io) if the folder cannot be read.
pub fn latest(dir: &Path) -> Result<Option<PathBuf>> {
    let found = list(dir)?.into_iter().rev();
    let mut complete = found.filter(|(step, path)| is_complete(path, *step));
    Ok(complete.next().map(|(_, path)| path))
}

/// Whether all files that a run goes on from are there and as long as they should be.
pub(crate) fn is_complete(path: &Path, step: usize) -> bool {
    let text = fs::read(path.join(STATE_FILE)).unwrap_or_default();
    let told = serde_json::from_slice::<Value>(&text).unwrap_or_default();
    let best = path.join(BEST_FILE);
    told["step"] == step
        && [TRAINED_FILE, OPTIMIZER_FILE, SCHEDULE_FILE]
            .iter()
            .all(|name| tensors::is_whole(&path.join(name)))
        && (!best.exists() || tensors::is_whole(&best))
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use peft_core::checkpoint::write_tensors;

    use super::*;
    use crate::tensors::Tensors;

    /// What makes a folder a checkpoint of that step.
    fn written(path: &Path, step: usize) {
        let tensors = Tensors::from([("a".into(), TensorData::new(vec![1.0_f32; 3], [3]))]);
        for name in [TRAINED_FILE, OPTIMIZER_FILE, SCHEDULE_FILE, BEST_FILE] {
            write_tensors(&path.join(name), &tensors).unwrap();
        }
        fs::write(path.join(STATE_FILE), format!("{{\"step\": {step}}}")).unwrap();
    }

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
        assert_eq!(latest(dir.path()).unwrap(), None, "they are empty");
        assert_eq!(latest(&dir.path().join("nothing")).unwrap(), None);
    }

    #[test]
    fn the_latest_checkpoint_is_one_that_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new] = [9, 10].map(|step| {
            let path = dir.path().join(format!("{PREFIX}{step}"));
            written(&path, step);
            path
        });
        let newest = || latest(dir.path()).unwrap().unwrap();
        assert_eq!(newest(), new);
        for name in [
            TRAINED_FILE,
            OPTIMIZER_FILE,
            SCHEDULE_FILE,
            BEST_FILE,
            STATE_FILE,
        ] {
            let bytes = fs::read(new.join(name)).unwrap();
            fs::write(new.join(name), &bytes[..bytes.len() - 1]).unwrap();
            assert_eq!(newest(), old, "{name}");
            fs::write(new.join(name), &bytes).unwrap();
            assert_eq!(newest(), new);
        }
        // Of another step, or with a file missing.
        fs::write(new.join(STATE_FILE), "{\"step\": 9}").unwrap();
        assert_eq!(newest(), old);
        written(&new, 10);
        fs::remove_file(new.join(OPTIMIZER_FILE)).unwrap();
        assert_eq!(newest(), old);
    }
}

//! The folder that a run writes its checkpoints into.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use peft_core::files::{self, NewFolder};

use crate::checkpoints::{self, PREFIX};
use crate::error::io;
use crate::{Error, Result};

/// Locked while a run writes. It stays in the folder: whoever deleted it could let two runs in.
const LOCK_FILE: &str = ".lock";

/// An output folder that no other run writes into as long as this is there.
#[derive(Debug)]
pub(crate) struct Output {
    dir: PathBuf,
    /// None where the file system has no locks.
    lock: Option<File>,
}

impl Output {
    /// Takes the folder, which is created if it is missing.
    pub(crate) fn take(dir: &Path) -> Result<Self> {
        files::create_dir(dir)?;
        let path = dir.join(LOCK_FILE);
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(io(&path))?;
        let lock = match file.try_lock() {
            Ok(()) => Some(file),
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: dir.into() }),
            Err(TryLockError::Error(_)) => None,
        };
        Ok(Self {
            dir: dir.into(),
            lock,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Refuses checkpoints that are not of this run, which goes on at `step`, from `resumed` if from any: they
    /// would be taken for its own later. Damaged ones of its own are no hindrance.
    pub(crate) fn refuse_others(&self, resumed: Option<&Path>, step: usize) -> Result<()> {
        let place = resumed.and_then(|path| path.canonicalize().ok());
        let place = place.as_deref().and_then(Path::parent);
        let own = place.is_some() && place == self.dir.canonicalize().ok().as_deref();
        let mut found = checkpoints::list(&self.dir)?.into_iter().rev();
        let others = |(found, path): &(usize, PathBuf)| {
            !own || (*found > step && checkpoints::is_complete(path, *found))
        };
        match found.find(others) {
            Some((_, path)) => Err(Error::Occupied { path }),
            None => Ok(()),
        }
    }

    /// Deletes what killed runs left unfinished. Where there are no locks it may be somebody's, and stays.
    pub(crate) fn clean(&self) -> Result<()> {
        if self.lock.is_none() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.dir).map_err(io(&self.dir))? {
            let path = entry.map_err(io(&self.dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let unfinished = name
                .strip_prefix('.')
                .is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(NewFolder::SUFFIX));
            if unfinished {
                fs::remove_dir_all(&path).map_err(io(&path))?;
            }
        }
        Ok(())
    }

    /// Deletes all but the `keep` newest checkpoints of those up to `step`.
    pub(crate) fn thin(&self, step: usize, keep: usize) -> Result<()> {
        let mut own = checkpoints::list(&self.dir)?;
        own.retain(|(found, path)| *found <= step && checkpoints::is_complete(path, *found));
        for (_, old) in &own[..own.len().saturating_sub(keep)] {
            files::remove_dir(old)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_for_one_run_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a").join("b");
        let output = Output::take(&dir).unwrap();
        let error = Output::take(&dir).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        drop(output);
        Output::take(&dir).unwrap();
    }

    #[test]
    fn what_is_unfinished_is_deleted_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            ".checkpoint-3-x7Yz.partial",
            ".checkpoint-11.partial",
            ".adapter-q.partial",
            "checkpoint-9.partial",
            "checkpoint-3",
        ];
        for name in names {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), "").unwrap();
        }
        Output::take(dir.path()).unwrap().clean().unwrap();
        let left = names.map(|name| dir.path().join(name).exists());
        assert_eq!(left, [false, false, true, true, true]);
    }
}

//! Files of model folders.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use peft_core::files::readable;

use crate::LoadError;

/// The file that a folder is known by: it is written last.
pub(crate) const CONFIG: &str = "config.json";

/// Where the file `name` of a model folder is to be read, also where writing the folder was interrupted.
pub(crate) fn place(dir: &Path, name: &str) -> PathBuf {
    readable(dir, CONFIG, name)
}

/// A file of at most `most` bytes.
pub(crate) fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, LoadError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            let reason = format!("it has more than {most} bytes, the most that are read");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
        }
        Ok(bytes)
    };
    read().map_err(|source| LoadError::Io {
        path: path.to_path_buf(),
        source,
    })
}

/// If there is no file at `path`, but some of `others` in the folder: says so, and what to do.
pub(crate) fn advise(
    dir: &Path,
    path: &Path,
    others: &[&str],
    advice: &'static str,
) -> Result<(), LoadError> {
    let found: Vec<&str> = (others.iter().copied())
        .filter(|name| dir.join(name).exists())
        .collect();
    if path.exists() || found.is_empty() {
        return Ok(());
    }
    Err(LoadError::Absent {
        path: path.to_path_buf(),
        found: found.join(", "),
        advice,
    })
}

/// Deletes a file that may be missing.
pub(crate) fn remove(path: &Path) -> Result<(), LoadError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LoadError::Write {
            path: path.to_path_buf(),
            source,
        }),
        _ => Ok(()),
    }
}

/// The error about a file that could not be written.
pub(crate) fn written(error: peft_core::Error) -> LoadError {
    match error {
        peft_core::Error::Io { path, source } => LoadError::Write { path, source },
        other => LoadError::Packing(other),
    }
}

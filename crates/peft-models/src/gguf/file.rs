//! Where a GGUF file is.

use std::path::{Path, PathBuf};

use crate::{LoadError, checkpoint};

/// The GGUF file that a path means, if it means one.
pub(crate) fn gguf_file(path: &Path) -> Result<Option<PathBuf>, LoadError> {
    let is_gguf = |path: &Path| {
        let extension = path.extension();
        extension.is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    };
    if is_gguf(path) {
        return Ok(Some(path.to_path_buf()));
    }
    if !path.is_dir() || checkpoint::place(path, checkpoint::CONFIG).exists() {
        return Ok(None);
    }
    let io = |source| LoadError::Io {
        path: path.to_path_buf(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if is_gguf(&file) {
            files.push(file);
        }
    }
    match files.len() {
        0 => Ok(None),
        1 => Ok(files.pop()),
        count => Err(LoadError::Gguf {
            path: path.to_path_buf(),
            reason: format!("it is a folder with {count} of them: name one"),
        }),
    }
}

//! The tensors of a folder, whichever file they are in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;

use crate::adapter::checkpoint_key::Style;
use crate::checkpoint::pickled::{self, pickled_file};
use crate::checkpoint::read::read_tensors;
use crate::error::Result;
use crate::files;
use crate::upstream::CONFIG_FILE;

/// Reads the tensors of a folder, from its pickled file if it has no other; and says which file that was.
pub(crate) fn read_folder(
    dir: &Path,
    style: Style,
) -> Result<(PathBuf, BTreeMap<String, TensorData>)> {
    let wanted = style.file();
    let path = files::readable(dir, CONFIG_FILE, wanted);
    match pickled_file(dir).filter(|_| !path.exists()) {
        None => {
            let tensors = read_tensors(&path)?;
            Ok((path, tensors))
        }
        Some(pickled) => {
            let path = dir.join(pickled);
            let tensors = pickled::read(&path, wanted)?;
            Ok((path, tensors))
        }
    }
}

//! The tensors of a folder, whichever file they are in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;

use crate::adapter::checkpoint_key::Style;
use crate::checkpoint::pickled::{self, pickled_file};
use crate::checkpoint::read::read_tensors;
use crate::error::Result;
use crate::files;
use crate::method::contract::Method;

/// Where an adapter's tensors are to be read: under the name that its method gives the file, or the usual one. `config` is
/// the name of the folder's configuration.
fn tensor_path(dir: &Path, config: &str, style: Style, method: &dyn Method) -> PathBuf {
    let usual = files::readable(dir, config, style.file());
    match method.file_names() {
        None => usual,
        Some(names) => {
            let own = files::readable(dir, config, names.tensors);
            if !own.exists() && usual.exists() {
                usual
            } else {
                own
            }
        }
    }
}

/// Reads the tensors of a folder, from its pickled file if it has no other; and says which file that was. `config` is the
/// name of its configuration.
pub(crate) fn read_folder(
    dir: &Path,
    config: &str,
    style: Style,
    method: &dyn Method,
) -> Result<(PathBuf, BTreeMap<String, TensorData>)> {
    let wanted = style.file();
    let path = tensor_path(dir, config, style, method);
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

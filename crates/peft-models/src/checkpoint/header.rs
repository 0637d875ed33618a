//! Opening safetensors files: what they hold and where, without the values.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::{Encoding, Shard, Slice, Stored};
use crate::LoadError;

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Weights in forms that are not read.
const OTHERS: [&str; 7] = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.00.pth",
    "consolidated.safetensors",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.onnx",
];

/// The format's own bound on a header, so that a hostile length cannot ask for all memory.
const MAX_HEADER: u64 = 100_000_000;

/// The part of an index that is used: which files there are. Which tensor is where, the files'
/// own headers say.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The checkpoint's files and their tensors, and what to call the whole in messages.
pub(super) fn open(dir: &Path) -> Result<(PathBuf, Vec<Shard>, Vec<Stored>), LoadError> {
    let index = super::place(dir, INDEX);
    let single = super::place(dir, SINGLE);
    if !index.exists() {
        super::advise(
            dir,
            &single,
            &OTHERS,
            "`AutoModel.from_pretrained(folder).save_pretrained(new_folder)` of Python's transformers writes it \
             (of the model's own class, as AutoModelForCausalLM, to keep the head)",
        )?;
    }
    // As upstream: one file comes before an index of several.
    let (path, files) = if single.exists() || !index.exists() {
        (single.clone(), vec![single])
    } else {
        let files = shard_files(dir, &index)?;
        (index, files)
    };
    let mut shards = Vec::new();
    let mut tensors = Vec::new();
    for file in files {
        let shard = open_shard(file, shards.len(), &mut tensors)?;
        shards.push(shard);
    }
    Ok((path, shards, tensors))
}

/// The files that an index names.
pub(crate) fn shard_files(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let parsed: Index = super::read_json(index)?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    for name in &names {
        // An index may only point beside itself.
        if Path::new(name)
            .file_name()
            .is_none_or(|file| file != name.as_str())
        {
            return Err(LoadError::Header {
                path: index.to_path_buf(),
                reason: format!("`weight_map` names `{name}`, which is not a file name"),
            });
        }
    }
    Ok(names.iter().map(|name| dir.join(name)).collect())
}

fn open_shard(path: PathBuf, shard: usize, tensors: &mut Vec<Stored>) -> Result<Shard, LoadError> {
    let io = |source| LoadError::Io {
        path: path.clone(),
        source,
    };
    let bad = |reason: String| LoadError::Header {
        path: path.clone(),
        reason,
    };
    let mut file = File::open(&path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    if found < 8 {
        return Err(bad(format!(
            "it has {found} bytes, and the header alone needs more"
        )));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(bad(format!(
            "its header claims {length} bytes; at most {MAX_HEADER} are read"
        )));
    }
    if 8 + length > found {
        return Err(LoadError::Length {
            path,
            expected: 8 + length,
            found,
        });
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| bad(error.to_string()))?;
    let start = 8 + length;
    let expected = start.saturating_add(metadata.data_len() as u64);
    if expected != found {
        return Err(LoadError::Length {
            path,
            expected,
            found,
        });
    }
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let values = Slice {
            shard,
            offset: start + from as u64,
            bytes: to - from,
        };
        tensors.push(Stored {
            name,
            shape: info.shape.clone(),
            encoding: Encoding::Plain {
                dtype: info.dtype,
                values,
            },
        });
    }
    Ok(Shard { path, file })
}

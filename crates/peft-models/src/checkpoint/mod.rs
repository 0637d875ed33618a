//! Safetensors checkpoints, read one tensor at a time.
//!
//! Nothing is mapped into memory (that needs `unsafe`) and no file is held whole: a tensor is
//! streamed from its place in the file into its `f32` values.

mod files;
mod fill;
mod header;
mod parts;
mod quantized;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use peft_core::ops::quantized::QuantizedWeight;
use peft_core::quantize::RawTensor;
use safetensors::Dtype;

use crate::LoadError;

pub(crate) use files::{CONFIG, advise, place, read_bounded, remove, written};
pub(crate) use fill::{fill, wanted};
pub(crate) use header::{INDEX, SINGLE, shard_files};

/// Bytes read at a time; a multiple of every element size.
const CHUNK: usize = 1 << 16;

/// The largest JSON file that is read, in bytes: an index of a thousand shards has some MB.
const MOST_JSON: u64 = 1 << 26;

/// How many names an error lists before it stops.
const LISTED: usize = 12;

/// One file of a checkpoint.
pub(crate) struct Shard {
    path: PathBuf,
    file: File,
}

/// Bytes in a shard.
#[derive(Clone, Copy)]
pub(crate) struct Slice {
    shard: usize,
    offset: u64,
    bytes: usize,
}

/// How a tensor's values are stored.
enum Encoding {
    Plain {
        dtype: Dtype,
        values: Slice,
    },
    /// 4-bit codes and one scale for each group of them: [`quantized`].
    Quantized {
        codes: Slice,
        scales: Slice,
    },
    /// A matrix in several tensors, by their names below the layer's, which a quantizer reads: [`parts`].
    Parts(BTreeMap<String, parts::Part>),
}

/// A tensor of the checkpoint.
struct Stored {
    /// Its name in the file.
    name: String,
    shape: Vec<usize>,
    encoding: Encoding,
}

/// What makes a quantized matrix of its parts, or nothing if it does not know such parts.
pub(crate) type ReadParts<'a> =
    dyn FnMut(&BTreeMap<String, RawTensor>) -> peft_core::Result<Option<QuantizedWeight>> + 'a;

/// Where tensors come from.
pub(crate) trait Source {
    /// Values of a tensor in row-major order, all finite.
    fn read(&mut self, name: &str) -> Result<Vec<f32>, LoadError>;

    /// What `read` makes of a matrix that is stored in parts; nothing if it is not.
    fn read_parts(
        &mut self,
        _name: &str,
        _read: &mut ReadParts<'_>,
    ) -> Result<Option<QuantizedWeight>, LoadError> {
        Ok(None)
    }
}

impl Source for Checkpoint {
    fn read(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        Checkpoint::read(self, name)
    }

    fn read_parts(
        &mut self,
        name: &str,
        read: &mut ReadParts<'_>,
    ) -> Result<Option<QuantizedWeight>, LoadError> {
        parts::read(self, name, read)
    }
}

/// An opened checkpoint: the headers are read and checked, the values are not read yet.
pub(crate) struct Checkpoint {
    /// What errors call the whole: the file, or the index of the shards.
    path: PathBuf,
    shards: Vec<Shard>,
    /// By the name that the caller gave them, see [`Checkpoint::open`].
    tensors: BTreeMap<String, Stored>,
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`: `model.safetensors`, or the files that
    /// `model.safetensors.index.json` lists. Tensors are known by `rename(name in the file)`.
    pub(crate) fn open(dir: &Path, rename: impl Fn(&str) -> String) -> Result<Self, LoadError> {
        let (path, mut shards, found) = header::open(dir)?;
        let found = quantized::dequantize(dir, &path, found)?;
        let mut tensors = BTreeMap::new();
        for stored in parts::join(&path, &mut shards, found)? {
            let name = rename(&stored.name);
            if let Some(twin) = tensors.insert(name.clone(), stored) {
                return Err(LoadError::Header {
                    path,
                    reason: format!("`{}` and another tensor both mean `{name}`", twin.name),
                });
            }
        }
        Ok(Self {
            path,
            shards,
            tensors,
        })
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape of a tensor, as upstream lays it out.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|stored| stored.shape.as_slice())
    }

    /// That the checkpoint holds exactly the tensors `wanted`, each of its shape, and besides them
    /// only what is `harmless`. Reads no values.
    pub(crate) fn check(
        &self,
        wanted: &[(String, Vec<usize>)],
        harmless: impl Fn(&str) -> bool,
    ) -> Result<(), LoadError> {
        let missing: Vec<&str> = wanted
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !self.has(name))
            .collect();
        if !missing.is_empty() {
            let (path, count, names) = (self.path.clone(), missing.len(), listed(&missing));
            return Err(LoadError::Missing { path, count, names });
        }
        let known: BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
        let unexpected: Vec<&str> = self
            .tensors
            .iter()
            .filter(|(name, _)| !harmless(name) && !known.contains(name.as_str()))
            .map(|(_, stored)| stored.name.as_str())
            .collect();
        if !unexpected.is_empty() {
            let (path, count, names) = (self.path.clone(), unexpected.len(), listed(&unexpected));
            return Err(LoadError::Unexpected { path, count, names });
        }
        for (name, expected) in wanted {
            let stored = &self.tensors[name];
            if stored.shape != *expected {
                return Err(LoadError::Shape {
                    path: self.path_of(stored),
                    tensor: stored.name.clone(),
                    expected: expected.clone(),
                    found: stored.shape.clone(),
                });
            }
        }
        Ok(())
    }

    /// Values of a tensor in row-major order, all finite.
    ///
    /// # Panics
    ///
    /// If there is no such tensor: [`check`](Self::check) comes first.
    pub(crate) fn read(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        let stored = &self.tensors[name];
        let values = match stored.encoding {
            Encoding::Plain { dtype, values } => {
                let shard = &mut self.shards[values.shard];
                read_plain(shard, values, dtype, &stored.name)?
            }
            Encoding::Quantized { codes, scales } => {
                let count = stored.shape.iter().product();
                let shards = &mut self.shards;
                quantized::read(shards, codes, scales, count)?
            }
            Encoding::Parts(_) => {
                return Err(self.packed_error(stored, parts::NEEDS_PACKER.to_string()));
            }
        };
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(LoadError::NotFinite {
                path: self.path_of(stored),
                tensor: stored.name.clone(),
                index,
                value: values[index],
            }),
        }
    }

    fn path_of(&self, stored: &Stored) -> PathBuf {
        let shard = match &stored.encoding {
            Encoding::Plain { values: slice, .. } | Encoding::Quantized { codes: slice, .. } => {
                slice.shard
            }
            Encoding::Parts(parts) => parts.values().next().map_or(0, |part| part.values.shard),
        };
        self.shards[shard].path.clone()
    }

    fn packed_error(&self, stored: &Stored, reason: String) -> LoadError {
        LoadError::Quantized {
            path: self.path_of(stored),
            tensor: stored.name.clone(),
            reason,
        }
    }
}

impl Shard {
    fn error(&self, source: std::io::Error) -> LoadError {
        LoadError::Io {
            path: self.path.clone(),
            source,
        }
    }

    /// The bytes of `slice`.
    fn bytes(&mut self, slice: Slice) -> Result<Vec<u8>, LoadError> {
        let mut bytes = Vec::with_capacity(slice.bytes);
        self.stream(slice, |chunk| bytes.extend_from_slice(chunk))?;
        Ok(bytes)
    }

    /// Hands the bytes of `slice` to `take`, in chunks.
    fn stream(&mut self, slice: Slice, mut take: impl FnMut(&[u8])) -> Result<(), LoadError> {
        self.file
            .seek(SeekFrom::Start(slice.offset))
            .map_err(|source| self.error(source))?;
        let mut buffer = vec![0; CHUNK.min(slice.bytes)];
        let mut left = slice.bytes;
        while left > 0 {
            let chunk = &mut buffer[..CHUNK.min(left)];
            self.file
                .read_exact(chunk)
                .map_err(|source| LoadError::Io {
                    path: self.path.clone(),
                    source,
                })?;
            take(chunk);
            left -= chunk.len();
        }
        Ok(())
    }
}

/// Values of a floating-point tensor, widened to `f32`.
fn read_plain(
    shard: &mut Shard,
    slice: Slice,
    dtype: Dtype,
    name: &str,
) -> Result<Vec<f32>, LoadError> {
    let mut values: Vec<f32>;
    match dtype {
        Dtype::F32 => {
            values = Vec::with_capacity(slice.bytes / 4);
            shard.stream(slice, |bytes| {
                values.extend(
                    bytes
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|b| f32::from_le_bytes(*b)),
                );
            })?;
        }
        Dtype::F16 => {
            values = Vec::with_capacity(slice.bytes / 2);
            shard.stream(slice, |bytes| {
                let halves = bytes.as_chunks::<2>().0.iter();
                values.extend(halves.map(|b| f16::from_le_bytes(*b).to_f32()));
            })?;
        }
        Dtype::BF16 => {
            values = Vec::with_capacity(slice.bytes / 2);
            shard.stream(slice, |bytes| {
                let halves = bytes.as_chunks::<2>().0.iter();
                values.extend(halves.map(|b| bf16::from_le_bytes(*b).to_f32()));
            })?;
        }
        other => {
            return Err(LoadError::Dtype {
                path: shard.path.clone(),
                tensor: name.to_string(),
                found: other.to_string(),
            });
        }
    }
    Ok(values)
}

/// The first few names for an error message.
pub(crate) fn listed(names: &[&str]) -> String {
    let mut text = names[..names.len().min(LISTED)].join(", ");
    if names.len() > LISTED {
        text.push_str(", …");
    }
    text
}

/// A JSON file as a `T`.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let text = read_bounded(path, MOST_JSON)?;
    serde_json::from_slice(&text).map_err(|source| LoadError::Json {
        path: path.to_path_buf(),
        source,
    })
}

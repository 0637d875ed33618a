//! Writing safetensors files, one tensor in memory at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, View};
use serde_json::Value;

use crate::Result;
use crate::checkpoint::{CONFIG_FILE, wrong};
use crate::files::{self, Files, Problem};
use crate::layout::LayoutParam;
use crate::packing::StoredPart;
use crate::tensor_spec::{Style, transpose};

/// Upstream's headers end at a multiple of so many bytes.
const ALIGNMENT: usize = 8;

/// A tensor of a file. Those of parameters are computed when they are written, one after another, so that
/// writing a model needs no second one in memory.
#[derive(Debug)]
pub enum Written<'a> {
    /// As it is.
    Data(&'a TensorData),
    /// As it is.
    Part(StoredPart),
    /// The value of a parameter, without adapters and dense; `transposed` if it is a matrix that upstream lays
    /// out so.
    Param {
        /// The parameter.
        param: &'a LayoutParam,
        /// Shape in the file.
        shape: Vec<usize>,
        /// Whether the matrix is transposed.
        transposed: bool,
    },
}

impl<'a> Written<'a> {
    /// The value of a parameter.
    pub fn of(param: &'a LayoutParam, transposed: bool) -> Self {
        let mut shape = param.shape();
        if transposed {
            shape.reverse();
        }
        Self::Param {
            param,
            shape,
            transposed,
        }
    }

    fn element(&self) -> std::result::Result<Dtype, DType> {
        let dtype = match self {
            Self::Data(data) => data.dtype(),
            Self::Part(part) => return Ok(part.dtype),
            Self::Param { param, .. } => param.dtype(),
        };
        match dtype {
            DType::F64 => Ok(Dtype::F64),
            DType::F32 => Ok(Dtype::F32),
            DType::F16 => Ok(Dtype::F16),
            DType::BF16 => Ok(Dtype::BF16),
            other => Err(other),
        }
    }
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        self.element().expect("checked before writing")
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Data(data) => data.shape(),
            Self::Part(StoredPart { shape, .. }) | Self::Param { shape, .. } => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Data(data) => Cow::Borrowed(data.as_bytes()),
            Self::Part(part) => Cow::Borrowed(&part.bytes),
            Self::Param {
                param, transposed, ..
            } => {
                let data = param.stored().to_data();
                let data = if *transposed { transpose(data) } else { data };
                Cow::Owned(data.as_bytes().to_vec())
            }
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Self::Data(data) => data.as_bytes().len(),
            Self::Part(part) => part.bytes.len(),
            Self::Param { param, .. } => param.elements() * param.dtype().size(),
        }
    }
}

/// Writes tensors to a safetensors file, whole or not at all.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io), and [`Error::Checkpoint`](crate::Error::Checkpoint) if a tensor holds what
/// safetensors lacks; a file that was there is as it was.
pub fn write_file(path: &Path, tensors: Vec<(String, Written<'_>)>) -> Result<()> {
    files::write_with(path, |file| serialize(file, path, tensors))
}

/// Adds a safetensors file to a set, as [`Files::stage`] does.
///
/// # Errors
///
/// As [`write_file`].
pub fn stage_file(
    files: &mut Files,
    name: &str,
    tensors: Vec<(String, Written<'_>)>,
) -> Result<()> {
    files.stage(name, |file| serialize(file, Path::new(name), tensors))
}

/// [`write_file`] of data.
///
/// # Errors
///
/// As [`write_file`].
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, TensorData>) -> Result<()> {
    write_file(path, all(tensors))
}

/// Writes a checkpoint folder: its two files change together.
pub(crate) fn write_folder(
    dir: &Path,
    style: Style,
    config: &Value,
    tensors: &BTreeMap<String, TensorData>,
) -> Result<()> {
    let text = serde_json::to_string_pretty(config).expect("JSON values serialize");
    let mut files = Files::new(dir)?;
    stage_file(&mut files, style.file(), all(tensors))?;
    files.stage(CONFIG_FILE, |file| file.write_all(text.as_bytes()))?;
    files.commit()
}

fn all(tensors: &BTreeMap<String, TensorData>) -> Vec<(String, Written<'_>)> {
    tensors
        .iter()
        .map(|(key, data)| (key.clone(), Written::Data(data)))
        .collect()
}

/// A safetensors file: the length of the header, the header, the tensors one after another.
///
/// `safetensors` writes files under names of its own choosing and does not sync them, so only its header is used.
fn serialize(
    file: &mut dyn Write,
    path: &Path,
    mut tensors: Vec<(String, Written<'_>)>,
) -> Result<(), Problem> {
    for (key, tensor) in &tensors {
        if let Err(dtype) = tensor.element() {
            let reason = format!("tensor `{key}` is {dtype:?}, which safetensors lacks");
            return Err(wrong(path, reason).into());
        }
    }
    // Wide numbers first, so that each tensor is aligned; then by name.
    tensors.sort_by(|(name, tensor), (other_name, other)| {
        (other.dtype().cmp(&tensor.dtype())).then_with(|| name.cmp(other_name))
    });
    let mut end = 0;
    let entries = tensors.iter().map(|(key, tensor)| {
        let start = end;
        end += tensor.data_len();
        let info = TensorInfo {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            data_offsets: (start, end),
        };
        (key.clone(), info)
    });
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let header = Metadata::new(Some(format), entries.collect())
        .map_err(|error| wrong(path, error.to_string()))?;
    let mut header = serde_json::to_vec(&header).expect("a header is plain data");
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (key, tensor) in tensors {
        let data = tensor.data();
        debug_assert_eq!(data.len(), tensor.data_len(), "the size of {key}");
        file.write_all(&data)?;
    }
    Ok(())
}

//! Writing safetensors files, one tensor in memory at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::{Dtype, SafeTensorError, View};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::Result;
use crate::checkpoint::{CONFIG_FILE, io, wrong};
use crate::layout::LayoutParam;
use crate::packing::StoredPart;
use crate::tensor_spec::{Style, transpose};

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
    let file = prepare(path, tensors)?;
    file.persist(path).map_err(|error| io(path)(error.error))?;
    Ok(())
}

/// [`write_file`] of data.
pub(crate) fn write_tensors(path: &Path, tensors: &BTreeMap<String, TensorData>) -> Result<()> {
    write_file(path, all(tensors))
}

/// Writes a checkpoint folder: both files are complete on the disk before either gets its name.
pub(crate) fn write_folder(
    dir: &Path,
    style: Style,
    config: &Value,
    tensors: &BTreeMap<String, TensorData>,
) -> Result<()> {
    fs::create_dir_all(dir).map_err(io(dir))?;
    let (config_path, model_path) = (dir.join(CONFIG_FILE), dir.join(style.file()));
    let text = serde_json::to_string_pretty(config).expect("JSON values serialize");
    let model = prepare(&model_path, all(tensors))?;
    let mut config = temporary(&config_path)?;
    config
        .write_all(text.as_bytes())
        .and_then(|()| config.as_file().sync_all())
        .map_err(io(&config_path))?;
    for (file, path) in [(model, &model_path), (config, &config_path)] {
        file.persist(path).map_err(|error| io(path)(error.error))?;
    }
    Ok(())
}

fn all(tensors: &BTreeMap<String, TensorData>) -> Vec<(String, Written<'_>)> {
    tensors
        .iter()
        .map(|(key, data)| (key.clone(), Written::Data(data)))
        .collect()
}

/// A temporary file beside `path` with all tensors on the disk.
fn prepare(path: &Path, tensors: Vec<(String, Written<'_>)>) -> Result<NamedTempFile> {
    for (key, tensor) in &tensors {
        if let Err(dtype) = tensor.element() {
            let reason = format!("tensor `{key}` is {dtype:?}, which safetensors lacks");
            return Err(wrong(path, reason));
        }
    }
    let file = temporary(path)?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(tensors, Some(metadata), file.path()).map_err(|error| {
        match error {
            SafeTensorError::IoError(error) => io(path)(error),
            other => wrong(path, other.to_string()),
        }
    })?;
    file.as_file().sync_all().map_err(io(path))?;
    Ok(file)
}

fn temporary(path: &Path) -> Result<NamedTempFile> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".peft-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // Like any new file, not like a secret: the umask applies.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir).map_err(io(path))
}

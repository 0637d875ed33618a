//! Writing safetensors files, one tensor in memory at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use burn::tensor::{DType, FloatDType, TensorData, bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use crate::checkpoint::heads::Head;
use crate::checkpoint::transpose::transpose;
use crate::error::{Result, wrong};
use crate::files::{self, Files, Problem};
use crate::layout::model_layout::LayoutParam;
use crate::layout::quantizer::RawTensor;
use crate::method::contract::FileNames;
use crate::upstream::{HEAD_CONFIG_FILE, HEAD_FILE};

/// Upstream's headers end at a multiple of so many bytes.
const ALIGNMENT: usize = 8;

/// A tensor of a file. Those of parameters are computed when they are written, one after another, so that
/// writing a model needs no second one in memory.
#[derive(Debug)]
pub enum TensorSource<'a> {
    /// As it is.
    Data(&'a TensorData),
    /// As it is.
    Part(RawTensor),
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
    /// Another one in another number format: [`TensorSource::cast`].
    Cast {
        /// What is converted.
        of: Box<TensorSource<'a>>,
        /// The format in the file: f64, f32, f16 or bf16.
        dtype: DType,
    },
}

impl<'a> TensorSource<'a> {
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

    /// This in the number format `dtype`, if it is of floats, rounded to the nearest value. One that the format cannot hold (beyond
    /// 65,504 in f16) is an error when it is written.
    #[must_use]
    pub fn cast(self, dtype: FloatDType) -> Self {
        let dtype = match dtype {
            FloatDType::F64 => DType::F64,
            FloatDType::F32 | FloatDType::Flex32 => DType::F32,
            FloatDType::F16 => DType::F16,
            FloatDType::BF16 => DType::BF16,
        };
        let own = self.dtype();
        if own == dtype || own.is_int() || own.is_uint() {
            return self;
        }
        Self::Cast {
            of: Box::new(self),
            dtype,
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Self::Data(data) => data.dtype(),
            Self::Part(part) => part.dtype,
            Self::Param { param, .. } => param.dtype(),
            Self::Cast { dtype, .. } => *dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Data(data) => data.shape(),
            Self::Part(RawTensor { shape, .. }) | Self::Param { shape, .. } => shape,
            Self::Cast { of, .. } => of.shape(),
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Data(data) => Cow::Borrowed(data.as_bytes()),
            Self::Part(part) => Cow::Borrowed(&part.bytes),
            Self::Cast { of, dtype } => Cow::Owned(converted(&of.data(), of.dtype(), *dtype)),
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
            Self::Cast { of, dtype } => {
                let elements: usize = of.shape().iter().product();
                elements * dtype.size()
            }
        }
    }
}

/// Numbers of one format as those of another.
fn converted(bytes: &[u8], from: DType, to: DType) -> Vec<u8> {
    let mut found = Vec::with_capacity(bytes.len() / from.size() * to.size());
    let mut push = |value: f64| match to {
        DType::F64 => found.extend(value.to_le_bytes()),
        DType::F16 => found.extend(f16::from_f64(value).to_le_bytes()),
        DType::BF16 => found.extend(bf16::from_f64(value).to_le_bytes()),
        _ => found.extend((value as f32).to_le_bytes()),
    };
    match from {
        DType::F64 => (bytes.as_chunks().0.iter()).for_each(|b| push(f64::from_le_bytes(*b))),
        DType::F16 => {
            (bytes.as_chunks().0.iter()).for_each(|b| push(f16::from_le_bytes(*b).to_f64()));
        }
        DType::BF16 => {
            (bytes.as_chunks().0.iter()).for_each(|b| push(bf16::from_le_bytes(*b).to_f64()));
        }
        _ => (bytes.as_chunks().0.iter()).for_each(|b| push(f64::from(f32::from_le_bytes(*b)))),
    }
    found
}

/// What safetensors calls a number format, if it has it.
fn stored_dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::U8 => Dtype::U8,
        _ => return None,
    })
}

/// Whether all are finite.
fn all_finite(bytes: &[u8], dtype: DType) -> bool {
    let wide = converted(bytes, dtype, DType::F64);
    (wide.as_chunks().0.iter()).all(|bytes| f64::from_le_bytes(*bytes).is_finite())
}

/// As [`write_tensors`], of tensors that may be computed when they are written.
pub(crate) fn write_file(path: &Path, tensors: Vec<(String, TensorSource<'_>)>) -> Result<()> {
    files::write_with(path, |file| serialize(file, path, tensors))
}

/// Adds a safetensors file to a set, as [`Files::stage`] does.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io), and [`Error::Checkpoint`](crate::Error::Checkpoint) if a tensor holds what
/// safetensors lacks; nothing is left of the file then.
pub fn stage_file(
    files: &mut Files,
    name: &str,
    tensors: Vec<(String, TensorSource<'_>)>,
) -> Result<()> {
    files.stage(name, |file| serialize(file, Path::new(name), tensors))
}

/// Writes tensors to a safetensors file, whole or not at all.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io), and [`Error::Checkpoint`](crate::Error::Checkpoint) if a tensor holds what
/// safetensors lacks; a file that was there is as it was.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, TensorData>) -> Result<()> {
    write_file(path, all(tensors))
}

/// Writes a checkpoint folder: its files, those of a head too, change together.
pub(crate) fn write_folder(
    dir: &Path,
    names: FileNames,
    config: &Value,
    tensors: &BTreeMap<String, TensorData>,
    head: Option<&Head>,
) -> Result<()> {
    let text = serde_json::to_string_pretty(config).expect("JSON values serialize");
    let mut files = Files::new(dir)?;
    stage_file(&mut files, names.tensors, all(tensors))?;
    if let Some((config, tensors)) = head.map(Head::files) {
        stage_file(&mut files, HEAD_FILE, all(tensors))?;
        files.stage(HEAD_CONFIG_FILE, |file| file.write_all(config.as_bytes()))?;
    }
    files.stage(names.config, |file| file.write_all(text.as_bytes()))?;
    files.commit()
}

fn all(tensors: &BTreeMap<String, TensorData>) -> Vec<(String, TensorSource<'_>)> {
    tensors
        .iter()
        .map(|(key, data)| (key.clone(), TensorSource::Data(data)))
        .collect()
}

/// A safetensors file: the length of the header, the header, the tensors one after another.
///
/// `safetensors` writes files under names of its own choosing and does not sync them, so only its header is used.
fn serialize(
    file: &mut dyn Write,
    path: &Path,
    tensors: Vec<(String, TensorSource<'_>)>,
) -> Result<(), Problem> {
    let mut stored = Vec::with_capacity(tensors.len());
    for (key, tensor) in tensors {
        let Some(dtype) = stored_dtype(tensor.dtype()) else {
            let reason = format!(
                "tensor `{key}` is {:?}, which safetensors lacks",
                tensor.dtype()
            );
            return Err(wrong(path, reason).into());
        };
        stored.push((dtype, key, tensor));
    }
    // Wide numbers first, so that each tensor is aligned; then by name.
    stored.sort_by(|(dtype, name, _), (other_dtype, other_name, _)| {
        (other_dtype.cmp(dtype)).then_with(|| name.cmp(other_name))
    });
    let mut end = 0;
    let entries = stored.iter().map(|(dtype, key, tensor)| {
        let start = end;
        end += tensor.data_len();
        let info = TensorInfo {
            dtype: *dtype,
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
    for (_, key, tensor) in stored {
        let data = tensor.data();
        debug_assert_eq!(data.len(), tensor.data_len(), "the size of {key}");
        if let TensorSource::Cast { dtype, .. } = &tensor
            && !all_finite(&data, *dtype)
        {
            let reason = format!("tensor `{key}` has a value that is not finite in {dtype:?}");
            return Err(wrong(path, reason).into());
        }
        file.write_all(&data)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_and_what_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let write = |values: &[f32], dtype| {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            write_file(
                &path,
                vec![("a".into(), TensorSource::Data(&data).cast(dtype))],
            )
        };
        write(&[1.0, -0.1, 3e38], FloatDType::BF16).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("a").unwrap();
        assert_eq!(tensor.dtype(), Dtype::BF16);
        // 1; -205 / 2048, the nearest to -0.1 with 8 bits; 3e38.
        assert_eq!(tensor.data(), [0x80, 0x3f, 0xcd, 0xbd, 0x62, 0x7f]);
        let error = write(&[1.0, 65_520.0], FloatDType::F16).unwrap_err();
        assert!(error.to_string().contains("`a`"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

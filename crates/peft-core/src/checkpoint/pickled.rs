//! Files of tensors that Python pickled.
//!
//! In Python a pickled file can run any program. Here none is run: `pytorch-reader` knows the calls of which tensors are
//! made, and keeps every other call as a value that is not looked at, or refuses it. Its own limits are for models; an
//! adapter's file is held to what it can be.

use std::path::Path;

use crate::error::Result;
use crate::upstream::PICKLED_FILES;

/// The pickled file of a folder, if it has one.
pub(crate) fn pickled_file(dir: &Path) -> Option<&'static str> {
    let mut names = PICKLED_FILES.iter().copied();
    names.find(|name| dir.join(name).exists())
}

/// How a pickled file is converted.
fn conversion(path: &Path, wanted: &str) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "Convert it with Python, in the folder: `import torch, safetensors.torch; \
         safetensors.torch.save_file(torch.load(\"{name}\", weights_only=True), \"{wanted}\")`"
    )
}

#[cfg(feature = "pickle")]
pub(crate) use reader::read;

/// Refuses a pickled file, with the ways out.
#[cfg(not(feature = "pickle"))]
pub(crate) fn read(
    path: &Path,
    wanted: &str,
) -> Result<std::collections::BTreeMap<String, burn::tensor::TensorData>> {
    Err(crate::error::wrong(
        path,
        format!(
            "the folder has no `{wanted}`, only this pickled file. In Python such a file can run any program; the \
             feature `pickle` (of `peft` or `peft-core`) reads it without running anything, and is not compiled in. {}",
            conversion(path, wanted)
        ),
    ))
}

#[cfg(feature = "pickle")]
mod reader {
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::io::Read as _;

    use burn::tensor::{DType, TensorData};
    use pytorch_reader::{DType as Stored, PytorchReader, Tensor};

    use super::{Path, Result, conversion};
    use crate::checkpoint::read::{FLOATS, INTEGERS, refuse_not_finite};
    use crate::error::{io, wrong};

    /// The pickle beside the tensors of an adapter has some hundred bytes for each. A value of it takes up to some
    /// hundred times the memory of its bytes.
    const MOST_PICKLE_BYTES: u64 = 1 << 22;

    /// Most bytes of a file in the layout before torch 1.6, in which the pickle and the tensors are one stream.
    const MOST_STREAM_BYTES: u64 = 1 << 25;

    /// Tensors may share what a file holds: so many times its size may they have together.
    const MOST_SHARED: u64 = 64;

    /// Reads a pickled file of tensors by name. Nothing in it is run.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) for what is no such file, or larger than an adapter's can be;
    /// [`Error::Io`](crate::Error::Io).
    pub(crate) fn read(path: &Path, wanted: &str) -> Result<BTreeMap<String, TensorData>> {
        let refuse = |reason: &dyn std::fmt::Display| {
            wrong(path, format!("{reason}. {}", conversion(path, wanted)))
        };
        let size = fs::metadata(path).map_err(io(path))?.len();
        check_container(path, size).map_err(|reason| refuse(&reason))?;
        let file = PytorchReader::new(path).map_err(|error| refuse(&error))?;
        let (mut tensors, mut sum) = (BTreeMap::new(), 0_u64);
        for (key, tensor) in file.into_tensors() {
            let bytes = tensor.byte_len() as u64;
            sum = sum.saturating_add(bytes);
            if bytes > size || sum > size.saturating_mul(MOST_SHARED) {
                let reason = format!(
                    "tensor `{key}` and those before it say that they have {sum} bytes, and the file has {size}"
                );
                return Err(refuse(&reason));
            }
            let data = data(&key, &tensor).map_err(|reason| refuse(&reason))?;
            refuse_not_finite(path, &key, &data)?;
            tensors.insert(key, data);
        }
        Ok(tensors)
    }

    /// Refuses what `torch.save` does not write, or no longer writes of that size, before it is unpacked.
    fn check_container(path: &Path, size: u64) -> std::result::Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut file = File::open(path).map_err(|error| text(&error))?;
        let mut start = Vec::new();
        (file.by_ref().take(4).read_to_end(&mut start)).map_err(|error| text(&error))?;
        if !start.starts_with(b"PK") {
            return if size <= MOST_STREAM_BYTES {
                Ok(())
            } else {
                Err(format!(
                    "a file in the layout before torch 1.6 is read up to {MOST_STREAM_BYTES} bytes, and this one has {size}"
                ))
            };
        }
        let mut archive = zip::ZipArchive::new(file).map_err(|error| text(&error))?;
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(|error| text(&error))?;
            let name = entry.name().map_err(|error| text(&error))?.into_owned();
            if entry.compression() != zip::CompressionMethod::Stored {
                return Err(format!(
                    "`{name}` in it is compressed, which torch does not do"
                ));
            }
            if Path::new(&name).extension().is_some_and(|end| end == "pkl")
                && entry.size() > MOST_PICKLE_BYTES
            {
                return Err(format!(
                    "`{name}` in it has {} bytes, and that of an adapter has at most {MOST_PICKLE_BYTES}",
                    entry.size()
                ));
            }
        }
        Ok(())
    }

    fn data(key: &str, tensor: &Tensor) -> std::result::Result<TensorData, String> {
        let dtype = match tensor.dtype() {
            Stored::F64 => DType::F64,
            Stored::F32 => DType::F32,
            Stored::F16 => DType::F16,
            Stored::BF16 => DType::BF16,
            Stored::I64 => DType::I64,
            Stored::I32 => DType::I32,
            Stored::I16 => DType::I16,
            Stored::U8 => DType::U8,
            other => {
                return Err(format!(
                    "tensor `{key}` holds {other:?}; {FLOATS}, and {INTEGERS} for integers"
                ));
            }
        };
        let bytes = tensor.read().map_err(|error| error.to_string())?;
        Ok(TensorData::from_bytes_vec(
            bytes,
            tensor.shape().to_vec(),
            dtype,
        ))
    }
}

//! Writing safetensors files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use peft_core::{LayoutParam, StoredPart};
use safetensors::{Dtype, SafeTensorError, View};

use crate::LoadError;

/// A tensor of the file; those of parameters are computed when they are written, one after another.
pub(crate) enum Written<'a> {
    /// As it is.
    Part(StoredPart),
    /// The value of a vector or matrix, in `f32`.
    Param {
        param: &'a LayoutParam,
        /// As upstream lays it out.
        shape: Vec<usize>,
        transposed: bool,
    },
}

impl<'a> Written<'a> {
    /// The value of a parameter, which upstream may store `transposed`.
    pub(crate) fn of(param: &'a LayoutParam, transposed: bool) -> Self {
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
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Part(part) => part.dtype,
            Self::Param { .. } => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Part(StoredPart { shape, .. }) | Self::Param { shape, .. } => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let (param, transposed) = match self {
            Self::Part(part) => return Cow::Borrowed(&part.bytes),
            Self::Param {
                param, transposed, ..
            } => (param, *transposed),
        };
        let data = match param.shape().len() {
            1 => param.value::<1>().into_data(),
            _ if transposed => param.value::<2>().transpose().into_data(),
            _ => param.value::<2>().into_data(),
        };
        data.iter::<f32>().flat_map(f32::to_le_bytes).collect()
    }

    fn data_len(&self) -> usize {
        match self {
            Self::Part(part) => part.bytes.len(),
            Self::Param { param, .. } => param.elements() * size_of::<f32>(),
        }
    }
}

/// Writes a file, which has its name only once it is complete.
///
/// # Errors
///
/// [`LoadError::Write`].
pub(crate) fn write(path: &Path, tensors: Vec<(String, Written<'_>)>) -> Result<(), LoadError> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| {
        LoadError::Write {
            path: path.to_path_buf(),
            source: match error {
                SafeTensorError::IoError(source) => source,
                other => std::io::Error::other(other),
            },
        }
    })
}

//! Safetensors files of the loop's own: exact, in the tensors' own number formats.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::io;
use crate::{Error, Result};

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, TensorData>;

/// Burn's number formats and those of the file.
const DTYPES: [(DType, Dtype); 4] = [
    (DType::F64, Dtype::F64),
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
];

fn wrong(path: &Path, reason: String) -> Error {
    Error::Resume {
        path: path.into(),
        reason,
    }
}

/// Writes `bytes` to a file, and waits until they are on the disk.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(io(path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io(path))
}

pub(crate) fn write(path: &Path, tensors: &Tensors) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, data) in tensors {
        let found = DTYPES.iter().find(|(burn, _)| *burn == data.dtype());
        let Some((_, dtype)) = found else {
            let reason = format!("`{name}` is {:?}, which is not written", data.dtype());
            return Err(wrong(path, reason));
        };
        let view = TensorView::new(*dtype, data.shape().to_vec(), data.as_bytes())
            .map_err(|error| wrong(path, format!("`{name}`: {error}")))?;
        views.push((name.as_str(), view));
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|error| wrong(path, error.to_string()))?;
    write_bytes(path, &bytes)
}

pub(crate) fn read(path: &Path) -> Result<Tensors> {
    let bytes = fs::read(path).map_err(io(path))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| wrong(path, format!("no valid safetensors file: {error}")))?;
    let mut tensors = Tensors::new();
    for (name, view) in file.iter() {
        let found = DTYPES.iter().find(|(_, file)| *file == view.dtype());
        let Some((dtype, _)) = found else {
            let reason = format!("`{name}` holds {:?}, which is not read", view.dtype());
            return Err(wrong(path, reason));
        };
        let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), *dtype);
        tensors.insert(name.to_string(), data);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_to_the_last_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tensors.safetensors");
        let whole = TensorData::new(vec![1.5_f32, -2.0e-30, 0.1, 3.0, 4.0, 5.0], [2, 3]);
        let half = whole.clone().convert_dtype(DType::BF16);
        let tensors = Tensors::from([("a.b".into(), whole), ("c".into(), half)]);
        write(&path, &tensors).unwrap();
        assert_eq!(read(&path).unwrap(), tensors);

        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("tensors.safetensors"), "{error}");
    }
}

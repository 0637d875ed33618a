//! Safetensors files of the loop's own: exact, in the tensors' own number formats.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};

use crate::error::io;
use crate::{Error, Result};

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, TensorData>;

/// Burn's number formats and those of the file.
const DTYPES: [(DType, Dtype); 8] = [
    (DType::F64, Dtype::F64),
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::I64, Dtype::I64),
    (DType::I32, Dtype::I32),
    (DType::I16, Dtype::I16),
    (DType::U8, Dtype::U8),
];

fn wrong(path: &Path, reason: String) -> Error {
    Error::Resume {
        path: path.into(),
        reason,
    }
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

/// Whether the file is as long as its header says: what a look at its beginning can tell.
pub(crate) fn is_whole(path: &Path) -> bool {
    let whole = || {
        let mut file = File::open(path).ok()?;
        let size = file.metadata().ok()?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).ok()?;
        let length = u64::from_le_bytes(length);
        if length > size {
            return None;
        }
        let mut header = Vec::new();
        file.take(length).read_to_end(&mut header).ok()?;
        let header: Metadata = serde_json::from_slice(&header).ok()?;
        Some(8 + length + header.data_len() as u64 == size)
    };
    whole().unwrap_or(false)
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
        let integers = TensorData::new(vec![-3_i32, 1 << 30], [2]);
        let tensors = Tensors::from([
            ("a.b".into(), whole),
            ("c".into(), half),
            ("d".into(), integers),
        ]);
        peft_core::checkpoint::write_tensors(&path, &tensors).unwrap();
        assert_eq!(read(&path).unwrap(), tensors);
        assert!(is_whole(&path));

        let bytes = fs::read(&path).unwrap();
        for length in [bytes.len() - 1, bytes.len() / 2, 8, 3, 0] {
            fs::write(&path, &bytes[..length]).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("tensors.safetensors"), "{error}");
            assert!(!is_whole(&path), "{length} bytes");
        }
        fs::remove_file(&path).unwrap();
        assert!(!is_whole(&path));
    }
}

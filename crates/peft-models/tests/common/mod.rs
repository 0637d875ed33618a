//! Golden files and damaged copies of them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft_testing::farthest;
use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};

/// A file of golden values in memory.
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn open(path: impl AsRef<Path>) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let bytes = file.tensor(name).unwrap().data().to_vec();
        bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }

    pub(crate) fn ints(&self, name: &str) -> (Vec<i64>, [usize; 2]) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        let values = tensor
            .data()
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| i64::from_le_bytes(*b));
        (values.collect(), tensor.shape().try_into().unwrap())
    }

    /// `input_ids` and `attention_mask` as a model takes them.
    pub(crate) fn inputs(&self, device: &Device) -> (Tensor<2, Int>, Option<Tensor<2, Bool>>) {
        let (ids, shape) = self.ints("input_ids");
        let (mask, _) = self.ints("attention_mask");
        let padding: Vec<bool> = mask.into_iter().map(|kept| kept == 0).collect();
        (
            Tensor::from_data(TensorData::new(ids, shape), device),
            Some(Tensor::from_data(TensorData::new(padding, shape), device)),
        )
    }
}

/// The largest absolute difference.
pub(crate) fn largest_error<const D: usize>(found: Tensor<D>, expected: &[f32]) -> f64 {
    let found: Vec<f32> = found.into_data().try_to_vec().unwrap();
    farthest(found, expected.iter().copied())
}

/// The folder of the tiny golden BERT.
pub(crate) fn tiny_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert/base")
}

/// A tensor as it is written to a file.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Raw {
    pub(crate) fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self {
            name: name.to_string(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        }
    }

    pub(crate) fn values(&self) -> Vec<f32> {
        self.bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }
}

/// The tiny model's tensors.
pub(crate) fn tiny_tensors() -> Vec<Raw> {
    let bytes = std::fs::read(tiny_dir().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let raw = |(name, view): (String, TensorView<'_>)| Raw {
        name,
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.tensors().into_iter().map(raw).collect()
}

/// Writes tensors to `file`.
pub(crate) fn write(tensors: &[Raw], file: &Path) {
    let views = tensors.iter().map(|raw| {
        let view = TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes).unwrap();
        (raw.name.clone(), view)
    });
    serialize_to_file(views, None, file).unwrap();
}

/// A copy of the tiny model's folder, with other tensors.
pub(crate) fn folder(tensors: &[Raw]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        tiny_dir().join("config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    write(tensors, &dir.path().join("model.safetensors"));
    dir
}

/// The tiny model's `config.json` with some fields set, or removed where `null`.
pub(crate) fn configured(fields: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let dir = folder(&tiny_tensors());
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let map = config.as_object_mut().unwrap();
    for (field, value) in fields {
        map.remove(*field);
        if !value.is_null() {
            map.insert((*field).to_string(), value.clone());
        }
    }
    std::fs::write(&path, config.to_string()).unwrap();
    dir
}

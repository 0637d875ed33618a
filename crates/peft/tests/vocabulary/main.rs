//! Growing vocabularies, of a BERT and of a Llama.
//!
//! The checkpoints are those of `crates/peft-models/tests/golden/vocabulary`.

mod bert;
mod llama;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::SafeTensors;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../peft-models/tests/golden")
        .join(path)
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn ids(values: &[i64], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), device)
}

/// The ids of a case, and what the model makes of them: hidden states or logits.
fn io(case: &Path, device: &Device) -> (Tensor<2, Int>, Vec<f64>) {
    let bytes = std::fs::read(case.join("io.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap();
    let values = ids.data().chunks_exact(8);
    let values: Vec<i64> = values
        .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let shape: [usize; 2] = ids.shape().try_into().unwrap();
    let output = file.tensor("output").unwrap();
    let output = output.data().chunks_exact(4);
    let output = output.map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())));
    (
        Tensor::from_data(TensorData::new(values, shape), device),
        output.collect(),
    )
}

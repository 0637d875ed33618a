//! Distances between what is computed here and upstream's values.

use burn::tensor::TensorData;
use peft_testing::largest;

use super::{Problem, Tensors};

pub(super) fn farthest(ours: &TensorData, theirs: &TensorData, what: &str) -> Result<f32, Problem> {
    if ours.shape() != theirs.shape() {
        return Err(Problem::Failed(format!(
            "{what}: shape {:?} here, {:?} upstream",
            ours.shape(),
            theirs.shape()
        )));
    }
    Ok(peft_testing::farthest(ours.iter::<f32>(), theirs.iter::<f32>()) as f32)
}

/// The largest of some distances; NaN where one of them is.
pub(super) fn worst(distances: impl IntoIterator<Item = f32>) -> f32 {
    largest(distances) as f32
}

/// What upstream calls something that it trains, where the checkpoint has another name for it.
const RENAMED: &[(&str, &str)] = &[
    ("prompt_encoder.embedding.weight", "prompt_embeddings"),
    ("prompt_encoder.prefix_task_cols", "prefix_task_cols"),
    ("prompt_encoder.prefix_task_rows", "prefix_task_rows"),
];

/// Largest difference of those that `keys` has, over the largest that it has: the difference itself where all are zero.
pub(super) fn farthest_of_gradients(
    a: &Tensors,
    b: &Tensors,
    keys: &Tensors,
) -> Result<f32, Problem> {
    let largest = worst(keys.values().flat_map(|data| data.iter::<f32>()));
    let mut distances = Vec::new();
    for key in keys.keys() {
        let renamed = RENAMED.iter().find(|(from, _)| from == key);
        let find = |tensors: &'_ Tensors| {
            let found = tensors.get(key).cloned();
            found.or_else(|| tensors.get(renamed?.1).cloned())
        };
        let missing = || Problem::Failed(format!("no gradient for `{key}` here"));
        let (a, b) = (find(a).ok_or_else(missing)?, find(b).ok_or_else(missing)?);
        distances.push(farthest(&a, &b, key)?);
    }
    let unit = if largest == 0.0 { 1.0 } else { largest };
    Ok(worst(distances) / unit)
}

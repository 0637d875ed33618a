//! What a case's `io.safetensors` and `grads.safetensors` hold.

use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData};

use super::case::read;
use super::{Problem, Tensors};

/// What goes into a model.
pub(super) enum Input {
    /// Token ids, `[batch, seq]`.
    Ids(Tensor<2, Int>),
    /// `[batch, channels, height, width]`.
    Pictures(Tensor<4>),
}

impl Input {
    pub(super) fn ids(self) -> Tensor<2, Int> {
        match self {
            Self::Ids(ids) => ids,
            Self::Pictures(_) => unreachable!("a model of texts is given texts"),
        }
    }

    pub(super) fn pictures(self) -> Tensor<4> {
        match self {
            Self::Pictures(pictures) => pictures,
            Self::Ids(_) => unreachable!("a model of pictures is given pictures"),
        }
    }
}

/// The same as a case holds it.
pub(super) enum InputData {
    Texts { ids: TensorData, mask: TensorData },
    Pictures(TensorData),
}

/// What a case holds besides its checkpoint.
pub(super) struct Values {
    pub(super) io: Tensors,
    /// Elements that upstream trains; unknown of several adapters, and of a file that was written once more in another
    /// spelling.
    pub(super) trainable: Option<usize>,
    pub(super) grads: Option<Tensors>,
}

impl Values {
    pub(super) fn read(case: &Path) -> Result<Self, Problem> {
        let (mut io, metadata) = read(&case.join("io.safetensors"))?;
        as_texts(&mut io);
        let trainable = metadata.get("trainable").and_then(|text| text.parse().ok());
        let path = case.join("grads.safetensors");
        let grads = path.exists().then(|| read(&path)).transpose()?;
        Ok(Self {
            io,
            trainable,
            grads: grads.map(|(tensors, _)| tensors),
        })
    }

    pub(super) fn known(&self, case: &Path, key: &str) -> Result<TensorData, Problem> {
        let missing = || Problem::new(case)(&format!("io.safetensors has no `{key}`"));
        self.io.get(key).cloned().ok_or_else(missing)
    }

    /// What the model reads.
    pub(super) fn data(&self, case: &Path) -> Result<InputData, Problem> {
        if let Some(pictures) = self.io.get("input") {
            return Ok(InputData::Pictures(pictures.clone()));
        }
        let (ids, mask) = (
            self.known(case, "input_ids")?,
            self.known(case, "attention_mask")?,
        );
        // AdapterHub's `Parallel` repeats the rows by itself.
        let rows = self.known(case, "output")?.shape()[0];
        Ok(InputData::Texts {
            ids: repeated(&ids, rows),
            mask: repeated(&mask, rows),
        })
    }
}

/// Choices `[rows, choices, seq]`, with their scores `[rows, choices]`, as texts with one score each.
fn as_texts(io: &mut Tensors) {
    let choices = |data: &TensorData| data.shape().len() == 3;
    if !io.get("input_ids").is_some_and(choices) {
        return;
    }
    for key in ["input_ids", "attention_mask", "output", "merged"] {
        let Some(data) = io.get_mut(key) else {
            continue;
        };
        let shape = data.shape().to_vec();
        let flat = [shape[0] * shape[1], shape.get(2).copied().unwrap_or(1)];
        *data = TensorData::from_bytes(data.bytes().clone(), flat, data.dtype());
    }
}

/// Whole numbers `[rows, seq]`, as often one behind the other as to have so many rows.
fn repeated(data: &TensorData, rows: usize) -> TensorData {
    let [own, seq] = [data.shape()[0], data.shape()[1]];
    let times = rows.checked_div(own).unwrap_or(1).max(1);
    let values: Vec<i64> = data.iter::<i64>().collect();
    TensorData::new(values.repeat(times), [own * times, seq])
}

//! A change of a few elements of a matrix: their values are trained, their places are not.

use burn::module::{Module, Param};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use peft_core::method::{Adapter, CheckpointKey, WeightAdapter};

/// `W' = W + S` of a linear layer, where S is 0 but at k places.
///
/// What is trained, stepped by the optimizer and stored are the k values, never a matrix.
#[derive(Module, Debug)]
pub struct SparseDelta {
    /// The changes, `[k]`.
    pub values: Param<Tensor<1>>,
    /// Their places in upstream's weight, `[2, k]`: outputs, then inputs. Not trained.
    pub indices: Param<Tensor<2, Int>>,
    /// Shape of the weight as Burn has it, `[in, out]`.
    #[module(skip)]
    shape: [usize; 2],
    /// What the keys of the file begin with.
    #[module(skip)]
    prefix: String,
}

impl SparseDelta {
    /// The keys in the file are `<prefix>_weight` and `<prefix>_indices` below the layer; `shape` is the weight's, `[in, out]`.
    pub(crate) fn new(
        values: Param<Tensor<1>>,
        indices: Param<Tensor<2, Int>>,
        shape: [usize; 2],
        prefix: &str,
    ) -> Self {
        Self {
            values,
            indices,
            shape,
            prefix: prefix.into(),
        }
    }

    /// The places in the flattened weight, `[k]`.
    fn places(&self) -> Tensor<1, Int> {
        let [count] = self.values.dims();
        let along = |axis: usize| -> Tensor<1, Int> {
            let indices = self.indices.val().slice([axis..axis + 1, 0..count]);
            indices.reshape([count])
        };
        along(1) * self.shape[1] as i64 + along(0)
    }
}

impl Adapter for SparseDelta {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let ([inputs, outputs], prefix) = (self.shape, &self.prefix);
        vec![
            CheckpointKey::layer("values", &format!("{prefix}_weight")).sparse(),
            CheckpointKey::layer("indices", &format!("{prefix}_indices"))
                .indices(&[outputs, inputs])
                .distinct(),
        ]
    }
}

impl WeightAdapter for SparseDelta {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let flat: Tensor<1> = weight.reshape([-1]);
        let values = self.values.val();
        flat.scatter(0, self.places(), values, IndexingUpdateOp::Add)
            .reshape(shape)
    }
}

//! A sparse matrix.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};

/// A sparse matrix `[in, out]`: its elements, of which no two have one place.
#[derive(Clone, Debug)]
pub struct Sparse {
    /// The elements, `[k]`.
    pub values: Tensor<1>,
    /// The input of each, its row, `[k]`.
    pub inputs: Tensor<1, Int>,
    /// The output of each, its column, `[k]`.
    pub outputs: Tensor<1, Int>,
    /// `[in, out]`.
    pub shape: [usize; 2],
}

impl Sparse {
    /// The elements as a tensor of `dtype`: where they are kept in another number format than is computed in.
    #[must_use]
    pub fn cast(self, dtype: DType) -> Self {
        if self.values.dtype() == dtype {
            return self;
        }
        Self {
            values: self.values.cast(dtype),
            ..self
        }
    }

    /// The matrix with zeros, `[in, out]`.
    pub fn dense(&self) -> Tensor<2> {
        let [d_in, d_out] = self.shape;
        let zeros =
            Tensor::<1>::zeros([d_in * d_out], (&self.values.device(), self.values.dtype()));
        let places = self.inputs.clone() * d_out as i64 + self.outputs.clone();
        let (values, add) = (self.values.clone(), IndexingUpdateOp::Add);
        zeros.scatter(0, places, values, add).reshape(self.shape)
    }
}

//! Matrices that are stored in fewer bits than they are computed with.

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

/// A frozen matrix in a storage format of its own, decoded row by row when it is needed.
///
/// Rows are what upstream's are: the outputs of a linear layer (`[out, in]`, the transpose of Burn's
/// weight), the tokens of an embedding table (`[vocabulary, d]`).
pub trait QuantizedMatrix: Debug + Send + Sync + 'static {
    /// `[rows, columns]`.
    fn shape(&self) -> [usize; 2];

    /// Writes the rows from `first` on; `values.len()` is a multiple of the number of columns and ends within
    /// the matrix. Called by many threads at a time.
    fn decode(&self, first: usize, values: &mut [f32]);

    /// The bits of all numbers in bfloat16, row-major, if that is how they are stored: products in
    /// [mixed precision](crate::MixedPrecision) read them as they are.
    fn bfloat16(&self) -> Option<&[u16]> {
        None
    }

    /// Bytes in memory, constants and scales included.
    fn bytes(&self) -> usize;

    /// Name of the format, as in `nf4`.
    fn format(&self) -> &str;

    /// For those who know the formats and want theirs back.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// A shared [`QuantizedMatrix`]: clones are one matrix.
#[derive(Clone, Debug)]
pub struct QuantizedWeight(Arc<dyn QuantizedMatrix>);

impl QuantizedWeight {
    /// Shares `rows`.
    pub fn new(rows: impl QuantizedMatrix) -> Self {
        Self(Arc::new(rows))
    }

    /// The matrix as `[rows, columns]` on a device, without a gradient.
    pub fn to_tensor(&self, device: &Device) -> Tensor<2> {
        let [rows, columns] = self.shape();
        let mut values = vec![0.0; rows * columns];
        self.decode_all(&mut values);
        Tensor::from_data(TensorData::new(values, [rows, columns]), device)
    }

    #[cfg(feature = "flex")]
    fn decode_all(&self, values: &mut [f32]) {
        use rayon::prelude::*;
        /// Numbers that one task decodes.
        const TASK: usize = 1 << 16;
        let columns = self.shape()[1].max(1);
        let rows = (TASK / columns).max(1);
        values
            .par_chunks_mut(rows * columns)
            .enumerate()
            .for_each(|(index, part)| self.decode(index * rows, part));
    }

    #[cfg(not(feature = "flex"))]
    fn decode_all(&self, values: &mut [f32]) {
        self.decode(0, values);
    }

    /// Some rows, `[rows.len(), columns]`, on a device, without a gradient.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn rows_to_tensor(&self, rows: &[usize], device: &Device) -> Tensor<2> {
        let columns = self.shape()[1];
        let mut values = vec![0.0; rows.len() * columns];
        for (row, values) in rows.iter().zip(values.chunks_exact_mut(columns.max(1))) {
            self.decode(*row, values);
        }
        Tensor::from_data(TensorData::new(values, [rows.len(), columns]), device)
    }
}

impl std::ops::Deref for QuantizedWeight {
    type Target = dyn QuantizedMatrix;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref()
    }
}

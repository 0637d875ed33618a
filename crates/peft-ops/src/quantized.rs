//! Matrices that are stored in fewer bits than they are computed with.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

#[cfg(feature = "cube")]
use crate::gpu::{Placed, PlacedOnce, is_cube};

pub use crate::format::{BlockScales, Codes, PackedMatrix, QuantizedMatrix};

/// A shared [`QuantizedMatrix`]: clones are one matrix.
#[derive(Clone, Debug)]
pub struct QuantizedWeight {
    rows: Arc<dyn QuantizedMatrix>,
    #[cfg(feature = "cube")]
    placed: PlacedOnce,
}

impl QuantizedWeight {
    /// Shares `rows`.
    pub fn new(rows: impl QuantizedMatrix) -> Self {
        Self {
            rows: Arc::new(rows),
            #[cfg(feature = "cube")]
            placed: PlacedOnce::default(),
        }
    }

    /// The matrix as `[rows, columns]` on a device, without a gradient.
    ///
    /// On a GPU, formats that say how they are [`packed`](QuantizedMatrix::packed) are decoded there.
    pub fn to_tensor(&self, device: &Device) -> Tensor<2> {
        #[cfg(feature = "cube")]
        if let Some(placed) = self.placed(device) {
            return placed.decode(&Tensor::empty([1], device));
        }
        let [rows, columns] = self.shape();
        let mut values = vec![0.0; rows * columns];
        self.decode_all(&mut values);
        Tensor::from_data(TensorData::new(values, [rows, columns]), device)
    }

    /// Codes and scales on a device that decodes them; they are copied there at the first call.
    #[cfg(feature = "cube")]
    pub(crate) fn placed(&self, device: &Device) -> Option<Placed> {
        is_cube(device)
            .then(|| self.placed.on(device, self.rows.as_ref()))
            .flatten()
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

    /// Rows by `ids` `[batch, length]`: `[batch, length, columns]`, without a gradient.
    ///
    /// On a GPU, formats that say how they are [`packed`](QuantizedMatrix::packed) are decoded there, and no id is read.
    ///
    /// # Panics
    ///
    /// If there is no such row; on a GPU, such a row's numbers mean nothing.
    pub fn select(&self, ids: Tensor<2, Int>, device: &Device) -> Tensor<3> {
        let [batch, length] = ids.dims();
        #[cfg(feature = "cube")]
        if let Some(placed) = self.placed(device) {
            let rows = placed.select(ids.reshape([batch * length]), &Tensor::empty([1], device));
            return rows.reshape([batch, length, self.shape()[1]]);
        }
        let rows: Vec<usize> = ids
            .into_data()
            .iter::<i64>()
            .map(|id| id as usize)
            .collect();
        self.rows_to_tensor(&rows, device)
            .reshape([batch, length, self.shape()[1]])
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
        self.rows.as_ref()
    }
}

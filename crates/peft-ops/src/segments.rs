//! Rows that hold several documents.

use std::sync::Arc;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

/// Which keys a query may see, by documents: those of its own document, and all keys before the places that are
/// told here (virtual tokens and prefixes). A query at such a place sees every key that is not filler.
///
/// One number for each place, in place of a mask of a number for each pair of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Row after row; negative for filler.
    ids: Arc<Vec<i64>>,
    length: usize,
}

impl Segments {
    /// The document of each of the last `length` keys, row after row; `None` for a key that only fills up its row,
    /// which no query sees. Queries are the last places, as in causal attention.
    ///
    /// # Panics
    ///
    /// If the number of places is no multiple of `length`.
    pub fn new(ids: impl IntoIterator<Item = Option<u32>>, length: usize) -> Self {
        let ids: Vec<i64> = ids.into_iter().map(|id| id.map_or(-1, i64::from)).collect();
        assert!(
            length > 0 && ids.len().is_multiple_of(length),
            "{} places in rows of {length}",
            ids.len()
        );
        Self {
            ids: Arc::new(ids),
            length,
        }
    }

    /// Those of some rows, in this order.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[must_use]
    pub fn of_rows(&self, rows: &[i64]) -> Self {
        let ids = rows.iter().flat_map(|row| self.row(*row as usize));
        Self {
            ids: Arc::new(ids.copied().collect()),
            length: self.length,
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.ids.len() / self.length
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Those of a row.
    pub(crate) fn row(&self, row: usize) -> &[i64] {
        &self.ids[row * self.length..(row + 1) * self.length]
    }

    /// As a mask that is added to scores, `[rows, queries, keys]`: 0 where a query sees a key.
    pub(crate) fn mask(&self, [queries, keys]: [usize; 2], device: &Device) -> Tensor<3> {
        let (rows, length) = (self.rows(), self.length);
        let data = TensorData::new(self.ids.to_vec(), [rows, length]);
        let of_keys = Tensor::<2, Int>::from_data(data, device);
        // Queries with a document of their own are the last ones of both.
        let told = queries.min(length);
        let of_queries = (of_keys.clone().slice_dim(1, length - told..length))
            .unsqueeze_dim::<3>(2)
            .expand([rows, told, length]);
        let filler =
            (of_keys.clone().lower_elem(0).unsqueeze_dim::<3>(1)).expand([rows, queries, length]);
        let of_keys = of_keys.unsqueeze_dim::<3>(1).expand([rows, told, length]);
        let other = of_queries.not_equal(of_keys);
        let free = Tensor::<3, Bool>::full([rows, queries - told, length], false, device);
        let hidden = Tensor::cat(vec![free, other], 1).bool_or(filler);
        let before = Tensor::<3, Bool>::full([rows, queries, keys - length], false, device);
        let hidden = Tensor::cat(vec![before, hidden], 2);
        // Finite, so that a row that sees nothing gives no NaN.
        Tensor::zeros(hidden.dims(), device).mask_fill(hidden, f32::MIN)
    }
}

//! Structural pruning (Sung et al. 2022, section 3.3): a side block consists of the rows and columns of the model's own
//! matrices that matter most.

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};
use peft_core::Result;
use peft_core::method::LayoutParam;

use crate::ladder::sizes::{Matrices, Sizes};

/// A matrix `[in, out]` of the model, and how much each element matters.
struct Weighed {
    columns: usize,
    values: Vec<f32>,
    importance: Vec<f32>,
}

impl Weighed {
    fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// How much each row matters.
    fn of_rows(&self) -> Vec<f64> {
        let rows = self.importance.chunks(self.columns);
        rows.map(|row| row.iter().map(|value| f64::from(*value)).sum())
            .collect()
    }

    /// How much each column matters.
    fn of_columns(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        for row in self.importance.chunks(self.columns) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
        }
        sums
    }

    /// What is left of it.
    fn pruned(&self, rows: &[usize], columns: &[usize], like: (&Device, DType)) -> Tensor<2> {
        let values = rows.iter().flat_map(|row| {
            let row = &self.values[row * self.columns..(row + 1) * self.columns];
            columns.iter().map(move |column| row[*column])
        });
        let data = TensorData::new(values.collect(), [rows.len(), columns.len()]);
        Tensor::from_data(data, like)
    }
}

/// The matrices of a block, weighed.
pub(crate) struct WeighedBlock {
    query: Weighed,
    key: Weighed,
    value: Weighed,
    attention_output: Weighed,
    gate: Option<Weighed>,
    up: Weighed,
    down: Weighed,
}

/// The matrices of a side block.
pub(crate) struct Pruned {
    pub(crate) query: Param<Tensor<2>>,
    pub(crate) key: Param<Tensor<2>>,
    pub(crate) value: Param<Tensor<2>>,
    pub(crate) attention_output: Param<Tensor<2>>,
    pub(crate) gate: Option<Param<Tensor<2>>>,
    pub(crate) up: Param<Tensor<2>>,
    pub(crate) down: Param<Tensor<2>>,
}

impl WeighedBlock {
    /// The matrices of a block. `importance` gives how much each element of a matrix matters, at least 0, in its shape.
    pub(crate) fn new(
        matrices: &Matrices<'_>,
        importance: impl Fn(&LayoutParam) -> Result<Tensor<2>>,
    ) -> Result<Self> {
        let weighed = |param: &LayoutParam| -> Result<Weighed> {
            let numbers = |tensor: Tensor<2>| tensor.into_data().iter::<f32>().collect();
            Ok(Weighed {
                columns: param.shape()[1],
                values: numbers(param.value::<2>()),
                importance: numbers(importance(param)?),
            })
        };
        Ok(Self {
            query: weighed(matrices.query)?,
            key: weighed(matrices.key)?,
            value: weighed(matrices.value)?,
            attention_output: weighed(matrices.attention_output)?,
            gate: matrices.gate.map(weighed).transpose()?,
            up: weighed(matrices.up)?,
            down: weighed(matrices.down)?,
        })
    }

    /// How much each feature of the hidden state matters to the block: as its input, and as its output.
    pub(crate) fn of_features(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.query.rows()];
        let inputs = [&self.query, &self.key, &self.value, &self.up];
        for matrix in inputs.into_iter().chain(&self.gate) {
            add(&mut sums, &matrix.of_rows());
        }
        for matrix in [&self.attention_output, &self.down] {
            add(&mut sums, &matrix.of_columns());
        }
        sums
    }

    /// The side block that reads and writes these features.
    pub(crate) fn pruned(
        &self,
        features: &[usize],
        sizes: Sizes,
        kept: Sizes,
        like: (&Device, DType),
    ) -> Pruned {
        let group = sizes.heads / sizes.kv_heads;
        // Queries and keys are multiplied with each other, so of both the same features of a head are kept; and so are
        // values and what the way back reads of them.
        let matched = of_heads(
            &self.query.of_columns(),
            &self.key.of_columns(),
            sizes,
            kept,
        );
        let read = self.attention_output.of_rows();
        let carried = of_heads(&read, &self.value.of_columns(), sizes, kept);
        let columns = |chosen: &[Vec<usize>], heads: usize, share: usize| -> Vec<usize> {
            (0..heads)
                .flat_map(|head| {
                    let of_head = chosen[head / share].iter();
                    of_head.map(move |feature| head * sizes.head + feature)
                })
                .collect()
        };
        let of_queries = columns(&matched, sizes.heads, group);
        let of_keys = columns(&matched, sizes.kv_heads, 1);
        let of_values = columns(&carried, sizes.kv_heads, 1);
        let of_outputs = columns(&carried, sizes.heads, group);
        let mut inner = self.up.of_columns();
        add(&mut inner, &self.down.of_rows());
        if let Some(gate) = &self.gate {
            add(&mut inner, &gate.of_columns());
        }
        let inner = most_important(&inner, kept.inside);
        let param = |matrix: &Weighed, rows: &[usize], columns: &[usize]| {
            Param::from_tensor(matrix.pruned(rows, columns, like))
        };
        Pruned {
            query: param(&self.query, features, &of_queries),
            key: param(&self.key, features, &of_keys),
            value: param(&self.value, features, &of_values),
            attention_output: param(&self.attention_output, &of_outputs, features),
            gate: self.gate.as_ref().map(|gate| param(gate, features, &inner)),
            up: param(&self.up, features, &inner),
            down: param(&self.down, &inner, features),
        }
    }
}

/// The features of each head of keys that are kept, by what matters of them in all of its heads of queries and in the
/// head itself.
fn of_heads(wide: &[f64], narrow: &[f64], sizes: Sizes, kept: Sizes) -> Vec<Vec<usize>> {
    let group = sizes.heads / sizes.kv_heads;
    let of_head = |head: usize| {
        let mut sums = narrow[head * sizes.head..(head + 1) * sizes.head].to_vec();
        for query in head * group..(head + 1) * group {
            add(
                &mut sums,
                &wide[query * sizes.head..(query + 1) * sizes.head],
            );
        }
        most_important(&sums, kept.head)
    };
    (0..sizes.kv_heads).map(of_head).collect()
}

/// Adds to sums.
pub(crate) fn add(sums: &mut [f64], more: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(more) {
        *sum += value;
    }
}

/// The indices of the `count` largest values, in their order; of equal ones the first.
pub(crate) fn most_important(values: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|one, other| values[*other].total_cmp(&values[*one]));
    order.truncate(count);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_kept_in_their_order() {
        assert_eq!(most_important(&[0.5, 3.0, 1.0, 3.0], 3), [1, 2, 3]);
        assert_eq!(most_important(&[1.0, 1.0, 1.0], 1), [0]);
        assert_eq!(most_important(&[1.0, f64::NAN, 0.0], 2), [0, 1]);
    }
}

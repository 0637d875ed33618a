//! A linear layer in a batch whose rows have adapters of their own.

use burn::tensor::{DType, Int, Tensor};
use peft_ops::LowRank;

use crate::adapter::base::BaseLinear as _;
use crate::adapter::erased::{AnyAdapter, ErasedWeight};
use crate::attached::rows::{Rows, index};
use crate::nn::base_layer::LinearBelow;
use crate::nn::place::Place;

/// The output of a linear layer whose rows have adapters of their own; `input` is `[rows, …, in]`.
///
/// The layer runs once, for all rows. Low-rank adapters add two batched products; others run once for
/// each adapter, on the rows that have it.
pub(crate) fn linear<const D: usize>(
    place: &Place<'_>,
    rows: &Rows,
    input: Tensor<D>,
) -> Tensor<D> {
    let shape = input.dims();
    let count = rows.names.len();
    assert!(
        D > 1 && shape[0] == count,
        "the model was told the adapters of {count} rows, and the batch has {} ({shape:?})",
        shape[0],
    );
    let [d_in, d_out] = place.base.dims();
    let mut output_shape = shape;
    output_shape[D - 1] = d_out;
    let input = input.reshape([count as isize, -1, d_in as isize]);
    let adapters: Vec<Option<&dyn ErasedWeight>> = rows
        .groups
        .iter()
        .map(|group| match &place.stack.entries[group.entry?].adapter {
            AnyAdapter::Weight(adapter) => Some(adapter.as_ref()),
            _ => None,
        })
        .collect();
    let factors: Option<Vec<Option<LowRank>>> = adapters
        .iter()
        .map(|adapter| match adapter {
            None => Some(None),
            Some(adapter) => {
                let factors = adapter.low_rank();
                factors.filter(|factors| factors.dropout == 0.0).map(Some)
            }
        })
        .collect();
    let output = if let Some(mut factors) = factors {
        let (weight, bias) = (place.weight(), place.bias.clone());
        if factors.len() < 2 {
            return peft_ops::linear(input, weight, bias, factors.pop().flatten())
                .reshape(output_shape);
        }
        let output = peft_ops::linear(input.clone(), weight, bias, None);
        match per_row(&factors, &rows.group_of, input.dtype()) {
            Some((down, up)) => output + input.matmul(down).matmul(up),
            None => output,
        }
    } else {
        let device = input.device();
        let mut order = Vec::new();
        let parts = rows.groups.iter().zip(&adapters).map(|(group, adapter)| {
            let index = Tensor::<1, Int>::from_data(group.rows.as_slice(), &device);
            order.extend_from_slice(&group.rows);
            let part = input.clone().select(0, index);
            let [rows, tokens, _] = part.dims();
            let below: Vec<&dyn ErasedWeight> = adapter.iter().copied().collect();
            let base = LinearBelow {
                base: place.base.clone(),
                quantized: place.quantized.as_ref(),
                bias: place.bias.clone(),
                norms: &place.norms,
                below: &below,
            };
            base.forward(part.reshape([rows * tokens, d_in]))
                .reshape([rows, tokens, d_out])
        });
        let parts = Tensor::cat(parts.collect(), 0);
        let mut back = vec![0_i64; count];
        for (place, row) in order.iter().enumerate() {
            back[*row as usize] = index(place);
        }
        parts.select(0, Tensor::<1, Int>::from_data(back.as_slice(), &device))
    };
    output.reshape(output_shape)
}

/// Factors of every row, `[rows, in, r]` and `[rows, r, out]`, in the input's number format: scales folded in,
/// ranks filled up with zeros. `None` if no row has an adapter here.
fn per_row(
    factors: &[Option<LowRank>],
    group_of: &[i64],
    dtype: DType,
) -> Option<(Tensor<3>, Tensor<3>)> {
    let given = || factors.iter().flatten();
    let first = given().next()?;
    let rank = given().map(|factors| factors.down.dims()[1]).max()?;
    let ([d_in, _], [_, d_out]) = (first.down.dims(), first.up.dims());
    let device = first.down.device();
    let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, (&device, dtype));
    let (downs, ups): (Vec<_>, Vec<_>) = factors
        .iter()
        .map(|factors| {
            let Some(factors) = factors else {
                return (zeros([d_in, rank]), zeros([rank, d_out]));
            };
            let LowRank {
                down, up, scale, ..
            } = factors.clone().cast(dtype);
            let up = up * scale;
            match rank - down.dims()[1] {
                0 => (down, up),
                missing => (
                    Tensor::cat(vec![down, zeros([d_in, missing])], 1),
                    Tensor::cat(vec![up, zeros([missing, d_out])], 0),
                ),
            }
        })
        .unzip();
    let rows = Tensor::<1, Int>::from_data(group_of, &device);
    let of_rows = |groups: Vec<Tensor<2>>| Tensor::stack::<3>(groups, 0).select(0, rows.clone());
    Some((of_rows(downs), of_rows(ups)))
}

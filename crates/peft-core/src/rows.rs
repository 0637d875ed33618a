//! A batch whose rows have adapters of their own.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use peft_ops::LowRank;

use crate::attached::{origins, stacks, unknown};
use crate::chain::InnerLinear;
use crate::erased::{AnyAdapter, ErasedWeight};
use crate::layout::{LayerKind, Layout};
use crate::mechanism::{self, Edits};
use crate::nn::Place;
use crate::{Error, Result};

/// The adapter of each row of a batch, by name; `None` for the base model.
pub(crate) type Rows = Arc<[Option<String>]>;

/// Rows with the same adapter at one layer; without a name, those with none.
struct Group<'a> {
    name: Option<&'a str>,
    adapter: Option<&'a dyn ErasedWeight>,
    rows: Vec<i64>,
}

/// A copy of the model in which row i of a batch has the adapter `rows[i]`.
pub(crate) fn activate<M: Module>(model: &M, layout: &Layout, rows: &[Option<&str>]) -> Result<M> {
    let attached = origins(layout);
    let named = || rows.iter().flatten();
    if let Some(name) = named().find(|name| !attached.contains_key(**name)) {
        return Err(unknown(name, layout));
    }
    let is_weight_of_linear = |path: &str| {
        layout.params.iter().any(|param| {
            param.path == path
                && param.field() == "weight"
                && layout.layer_of(param).kind == LayerKind::Linear
        })
    };
    for (path, stack) in stacks(layout) {
        let asked = |name: &String| named().any(|asked| asked == name);
        if let Some(entry) = stack.entries.iter().find(|entry| asked(&entry.name))
            && !is_weight_of_linear(path)
        {
            return Err(Error::RowAdapter {
                adapter: entry.name.clone(),
                method: entry.origin.method.info().title,
                place: path.to_string(),
            });
        }
    }
    let rows: Rows = rows.iter().map(|name| name.map(str::to_string)).collect();
    let edited = stacks(layout)
        .map(|(path, stack)| {
            let mut stack = stack.clone();
            for entry in &mut stack.entries {
                entry.active = false;
            }
            stack.rows = Some(rows.clone());
            (path.to_string(), stack)
        })
        .collect();
    Ok(mechanism::place(
        model,
        Edits {
            stacks: edited,
            ..Edits::default()
        },
    ))
}

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
    assert!(
        D > 1 && shape[0] == rows.len(),
        "the model was told the adapters of {} rows, and the batch has {} ({shape:?})",
        rows.len(),
        shape[0],
    );
    let [d_in, d_out] = place.base.dims();
    let mut output_shape = shape;
    output_shape[D - 1] = d_out;
    let input = input.reshape([rows.len() as isize, -1, d_in as isize]);
    // Each adapter once, with its rows.
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (row, name) in rows.iter().enumerate() {
        let entry = name.as_deref().and_then(|name| place.stack.entry(name));
        let name = entry.map(|entry| entry.name.as_str());
        let row = row.cast_signed() as i64;
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.rows.push(row),
            None => groups.push(Group {
                name,
                adapter: entry.and_then(|entry| match &entry.adapter {
                    AnyAdapter::Weight(adapter) => Some(adapter.as_ref()),
                    _ => None,
                }),
                rows: vec![row],
            }),
        }
    }
    let factors: Option<Vec<Option<LowRank>>> = groups
        .iter()
        .map(|group| match group.adapter {
            None => Some(None),
            Some(adapter) => {
                let factors = adapter.low_rank();
                factors.filter(|factors| factors.dropout == 0.0).map(Some)
            }
        })
        .collect();
    let output = if let Some(factors) = factors {
        let bias = place.bias.clone();
        let output = peft_ops::linear(input.clone(), place.weight(), bias, None);
        match per_row(&groups, &factors, rows.len()) {
            Some((down, up)) => output + input.matmul(down).matmul(up),
            None => output,
        }
    } else {
        let device = input.device();
        let mut order = Vec::new();
        let parts = groups.iter().map(|group| {
            let index = Tensor::<1, Int>::from_data(group.rows.as_slice(), &device);
            order.extend_from_slice(&group.rows);
            let part = input.clone().select(0, index);
            let [count, tokens, _] = part.dims();
            let below: Vec<&dyn ErasedWeight> = group.adapter.into_iter().collect();
            let inner = InnerLinear {
                base: place.base.clone(),
                packed: place.packed.as_ref(),
                bias: place.bias.clone(),
                below: &below,
            };
            inner
                .forward(part.reshape([count * tokens, d_in]))
                .reshape([count, tokens, d_out])
        });
        let parts = Tensor::cat(parts.collect(), 0);
        let mut back = vec![0_i64; rows.len()];
        for (place, row) in order.iter().enumerate() {
            back[*row as usize] = place.cast_signed() as i64;
        }
        parts.select(0, Tensor::<1, Int>::from_data(back.as_slice(), &device))
    };
    output.reshape(output_shape)
}

/// Factors of every row, `[rows, in, r]` and `[rows, r, out]`: scales folded in, ranks filled up with
/// zeros. `None` if no row has an adapter here.
fn per_row(
    groups: &[Group<'_>],
    factors: &[Option<LowRank>],
    rows: usize,
) -> Option<(Tensor<3>, Tensor<3>)> {
    let first = factors.iter().flatten().next()?;
    let rank = factors
        .iter()
        .flatten()
        .map(|factors| factors.down.dims()[1])
        .max()?;
    let ([d_in, _], [_, d_out]) = (first.down.dims(), first.up.dims());
    let options = (&first.down.device(), first.down.dtype());
    let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, options);
    let mut downs = vec![None; rows];
    let mut ups = vec![None; rows];
    for (group, factors) in groups.iter().zip(factors) {
        let (down, up) = match factors {
            None => (zeros([d_in, rank]), zeros([rank, d_out])),
            Some(LowRank {
                down, up, scale, ..
            }) => {
                let missing = rank - down.dims()[1];
                let (down, up) = (down.clone(), up.clone() * *scale);
                if missing == 0 {
                    (down, up)
                } else {
                    (
                        Tensor::cat(vec![down, zeros([d_in, missing])], 1),
                        Tensor::cat(vec![up, zeros([missing, d_out])], 0),
                    )
                }
            }
        };
        for row in &group.rows {
            downs[*row as usize] = Some(down.clone().unsqueeze::<3>());
            ups[*row as usize] = Some(up.clone().unsqueeze::<3>());
        }
    }
    let stacked =
        |parts: Vec<Option<Tensor<3>>>| Tensor::cat(parts.into_iter().flatten().collect(), 0);
    Some((stacked(downs), stacked(ups)))
}

//! Layers whose rows or tokens have adapters of their own.

use std::any::Any;

use burn::tensor::kind::Basic;
use burn::tensor::{DType, Int, Tensor};
use peft_ops::LowRank;

use crate::adapter::forward_context::ForwardContext;
use crate::adapter::routing::RoutedPlace;
use crate::attached::composition::{Blend, Mixture, Parts, PerRow};
use crate::attached::nested::Branches;
use crate::attached::stack::Stack;
use crate::nn::place::Place;

/// The output of a layer under a mixture, from its outputs under one adapter or none. `run` computes those of the
/// stack that it is given, for some rows of the input and their part of the context.
///
/// Where each row has its adapter, the layer runs once for each adapter, on its rows; otherwise once without adapters
/// and once with each, on all.
pub(crate) fn mix<K: Basic + 'static, const D: usize, const E: usize>(
    stack: &Stack,
    mixture: &Mixture,
    input: Tensor<D, K>,
    context: &ForwardContext,
    run: impl Fn(&Stack, Tensor<D, K>, &ForwardContext) -> Tensor<E>,
) -> Tensor<E> {
    let weights: Vec<(usize, Factor)> = match &mixture.parts {
        Parts::PerRow(rows) => {
            check_rows(rows, &input.dims());
            if let [group] = rows.groups.as_slice() {
                return run(&stack.with(&group.entries), input, context);
            }
            return rows.run(&input.device(), |entries, rows, index| {
                let part = input.clone().select(0, index.clone());
                run(&stack.with(entries), part, &context.of_rows(rows, &index))
            });
        }
        Parts::Blend(blend) => return blended(stack, blend, input, context, run),
        Parts::Tree(_) => unreachable!("a site of hidden states runs the tree itself"),
        Parts::Weighted(entries) => entries
            .iter()
            .map(|(entry, weight)| (*entry, Factor::Same(*weight)))
            .collect(),
        Parts::Routed(entries) => {
            let weights = Weights::at(&mixture.place, input_of(&input), context);
            let weight = |entry: &usize| {
                let weight = weights.of(&stack.entries[*entry].name);
                (*entry, Factor::Varied(Box::new(weight)))
            };
            entries.iter().map(weight).collect()
        }
    };
    let base = run(&stack.only(None), input.clone(), context);
    weights
        .into_iter()
        .fold(base.clone(), |sum, (entry, factor)| {
            let changed = run(&stack.only(Some(entry)), input.clone(), context);
            sum + factor.times(changed - base.clone())
        })
}

/// A layer's output under sums of stacks.
fn blended<K: Basic + 'static, const D: usize, const E: usize>(
    stack: &Stack,
    blend: &Blend,
    input: Tensor<D, K>,
    context: &ForwardContext,
    run: impl Fn(&Stack, Tensor<D, K>, &ForwardContext) -> Tensor<E>,
) -> Tensor<E> {
    let sum = |branches: &Branches, input: Tensor<D, K>, context: &ForwardContext| {
        let parts = branches.iter().map(|(factor, entries)| {
            let output = run(&stack.with(entries), input.clone(), context);
            if (factor - 1.0).abs() < f64::EPSILON {
                output
            } else {
                output * *factor
            }
        });
        let sum = parts.reduce(|sum, part| sum + part);
        sum.unwrap_or_else(|| run(&stack.only(None), input, context))
    };
    let Some(rows) = &blend.rows else {
        return sum(&blend.sums[0], input, context);
    };
    check_rows(rows, &input.dims());
    rows.run(&input.device(), |at, rows, index| {
        let part = input.clone().select(0, index.clone());
        sum(&blend.sums[at[0]], part, &context.of_rows(rows, &index))
    })
}

/// How much of a change there is.
enum Factor {
    Same(f64),
    /// `[batch, 1 or seq, 1]`.
    Varied(Box<Tensor<3>>),
}

impl Factor {
    fn times<const E: usize>(self, change: Tensor<E>) -> Tensor<E> {
        match self {
            Self::Same(factor) => change * factor,
            Self::Varied(weight) => {
                let dims = change.dims();
                let weight = spread((*weight).cast(change.dtype()), dims);
                change * weight
            }
        }
    }
}

/// The weights that the forward pass brings, at one place.
pub(crate) struct Weights<'a> {
    names: &'a [String],
    /// `[batch, 1 or seq, adapters]`.
    weights: Tensor<3>,
}

impl<'a> Weights<'a> {
    /// Those at the place called `name`; `input` is what goes into it.
    pub(crate) fn at(name: &str, input: Option<Tensor<3>>, context: &'a ForwardContext) -> Self {
        let routing = context.routing().expect(
            "the model's adapters are composed by routing, and this layer was called without weights: give them with \
             `ForwardContext::with_routing`, and call the model's layers with `adapted_in`",
        );
        Self {
            names: routing.names(),
            weights: routing.weights(&RoutedPlace::new(name, input)),
        }
    }

    /// The weight of an adapter, `[batch, 1 or seq, 1]`.
    pub(crate) fn of(&self, name: &str) -> Tensor<3> {
        let at = self.names.iter().position(|known| known == name);
        let at = at.unwrap_or_else(|| {
            panic!(
                "the routing has weights for {:?}, and none for the adapter `{name}`",
                self.names
            )
        });
        self.weights.clone().narrow(2, at, 1)
    }
}

/// What goes into a layer as `[batch, seq, features]`, if it is of floats and such.
fn input_of<K: Basic + 'static, const D: usize>(input: &Tensor<D, K>) -> Option<Tensor<3>> {
    let input: &dyn Any = input;
    if let Some(rows) = input.downcast_ref::<Tensor<2>>() {
        return Some(rows.clone().unsqueeze_dim(1));
    }
    input.downcast_ref::<Tensor<3>>().cloned()
}

/// `[1 or batch, 1 or seq, features]` as it is multiplied with or added to a tensor of `dims`, whose first axis is the
/// batch, or batch and tokens together.
pub(crate) fn spread<const E: usize>(values: Tensor<3>, dims: [usize; E]) -> Tensor<E> {
    let [batch, seq, features] = values.dims();
    let mut shape = [1; E];
    shape[0] = batch;
    shape[E - 1] = features;
    let same_rows = batch == 1 || dims[0] == batch;
    let fits = match E {
        2 => {
            let tokens = dims[0] / batch;
            let fits = tokens * batch == dims[0] && (seq == 1 || seq == tokens);
            if fits {
                shape[0] = dims[0];
                let values = values.expand([batch, tokens, features]);
                return values.reshape(shape);
            }
            false
        }
        3 => {
            shape[1] = seq;
            same_rows && (seq == 1 || seq == dims[1])
        }
        _ => same_rows && seq == 1,
    };
    assert!(
        fits,
        "the composition is of {batch} rows with {seq} tokens (1: all alike), and the layer's output is {dims:?}"
    );
    values.reshape(shape)
}

/// Refuses a batch of another number of rows.
fn check_rows<const D: usize>(rows: &PerRow, shape: &[usize; D]) {
    let count = rows.count();
    assert!(
        D > 1 && shape[0] == count,
        "the model was told the adapters of {count} rows, and the batch has {} ({shape:?})",
        shape[0],
    );
}

impl PerRow {
    /// What `part` makes of each group's entries and rows, in the order of the rows.
    pub(crate) fn run<const E: usize>(
        &self,
        device: &burn::tensor::Device,
        part: impl Fn(&[usize], &[i64], Tensor<1, Int>) -> Tensor<E>,
    ) -> Tensor<E> {
        let index = |rows: &[i64]| Tensor::<1, Int>::from_data(rows, device);
        let parts = self.groups.iter().map(|group| {
            let output = part(&group.entries, &group.rows, index(&group.rows));
            let (found, asked) = (output.dims()[0], group.rows.len());
            assert_eq!(
                found, asked,
                "an adapter gave {found} rows for the {asked} that it was given"
            );
            output
        });
        let parts = Tensor::cat(parts.collect(), 0);
        parts.select(0, index(&self.places()))
    }

    /// One value for each row, of those that `of` gives for the groups' entries.
    pub(crate) fn spread<const D: usize, const E: usize>(
        &self,
        of: impl Fn(&[usize]) -> Tensor<D>,
    ) -> Tensor<E> {
        let values = self.groups.iter().map(|group| of(&group.entries));
        let values = Tensor::stack::<E>(values.collect(), 0);
        let rows = Tensor::<1, Int>::from_data(self.group_of.as_slice(), &values.device());
        values.select(0, rows)
    }
}

/// The output of a linear layer under a mixture; `input` is `[batch, …, in]`. `run` gives that under one adapter.
///
/// The layer runs once, for all rows, where all adapters are low-rank additions without dropout: these are two batched
/// products more, or two products whose middle is weighted. Otherwise `run` computes the layer with one adapter or none.
pub(crate) fn linear<const D: usize>(
    place: &Place<'_>,
    mixture: &Mixture,
    input: Tensor<D>,
    context: &ForwardContext,
    run: impl Fn(&Place<'_>, Tensor<D>, &ForwardContext) -> Tensor<D>,
) -> Tensor<D> {
    let added = match &mixture.parts {
        Parts::PerRow(rows) => {
            check_rows(rows, &input.dims());
            added_by_rows(place, rows, &input)
        }
        Parts::Weighted(_) | Parts::Blend(_) | Parts::Tree(_) => None,
        Parts::Routed(entries) => {
            let weights = || Weights::at(&mixture.place, input_of(&input), context);
            added_by_weights(place, entries, &input, weights)
        }
    };
    if let Some(added) = added {
        let weight = place.weight();
        let output = peft_ops::linear(input, weight, place.bias.clone(), None);
        return match added {
            None => output,
            Some(added) => output + added,
        };
    }
    mix(
        place.stack,
        mixture,
        input,
        context,
        |stack, part, context| {
            let place = Place {
                stack,
                ..place.clone()
            };
            run(&place, part, context)
        },
    )
}

/// The low-rank additions of these entries, if they are such and drop nothing.
fn low_rank(place: &Place<'_>, entry: usize) -> Option<LowRank> {
    let factors = place.stack.entries[entry]
        .adapter
        .weight_adapter()
        .low_rank();
    factors.filter(|factors| factors.dropout == 0.0 && place.below.is_empty())
}

/// What the rows' adapters add; inner `None` for nothing. Outer `None` where it takes more than two products.
#[expect(
    clippy::option_option,
    reason = "nothing to add is another thing than no fast way"
)]
fn added_by_rows<const D: usize>(
    place: &Place<'_>,
    rows: &PerRow,
    input: &Tensor<D>,
) -> Option<Option<Tensor<D>>> {
    let factors = rows
        .groups
        .iter()
        .map(|group| match group.entries.as_slice() {
            [] => Some(None),
            [entry] => low_rank(place, *entry).map(Some),
            // Several would be products of several ranks for a row.
            _ => None,
        });
    let factors: Vec<Option<LowRank>> = factors.collect::<Option<_>>()?;
    if factors.len() == 1 && factors[0].is_some() {
        // One adapter for all rows is fused with the layer.
        return None;
    }
    let mut shape = input.dims();
    let [d_in, d_out] = place.base.dims();
    let flat = input
        .clone()
        .reshape([shape[0] as isize, -1, d_in as isize]);
    shape[D - 1] = d_out;
    let products = per_row(&factors, &rows.group_of, input.dtype());
    Some(products.map(|(down, up)| flat.matmul(down).matmul(up).reshape(shape)))
}

/// What adapters add whose weights the forward pass brings: `(w ∘ x A) B`.
#[expect(clippy::option_option, reason = "as `added_by_rows`")]
fn added_by_weights<'a, const D: usize>(
    place: &Place<'_>,
    entries: &[usize],
    input: &Tensor<D>,
    weights: impl FnOnce() -> Weights<'a>,
) -> Option<Option<Tensor<D>>> {
    let factors = entries.iter().map(|entry| low_rank(place, *entry));
    let factors: Vec<LowRank> = factors.collect::<Option<_>>()?;
    let routed = weights();
    let (mut downs, mut ups, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (entry, factors) in entries.iter().zip(factors) {
        let LowRank {
            down, up, scale, ..
        } = factors.cast(input.dtype());
        let weight = routed.of(&place.stack.entries[*entry].name);
        weights.push(weight.repeat_dim(2, down.dims()[1]));
        downs.push(down);
        ups.push(up * scale);
    }
    let [_, d_out] = place.base.dims();
    let (down, up) = (Tensor::cat(downs, 1), Tensor::cat(ups, 0));
    let mut shape = input.dims();
    let flat = input.clone().reshape([-1, shape[D - 1] as isize]);
    let mut middle_shape = shape;
    middle_shape[D - 1] = down.dims()[1];
    let middle = flat.matmul(down).reshape(middle_shape);
    let weights = spread(Tensor::cat(weights, 2).cast(input.dtype()), middle_shape);
    let middle = middle * weights;
    let rank = middle_shape[D - 1] as isize;
    shape[D - 1] = d_out;
    Some(Some(middle.reshape([-1, rank]).matmul(up).reshape(shape)))
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

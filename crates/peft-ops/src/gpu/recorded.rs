//! Attention as tensors call it.

use burn::backend::Dispatch;
use burn::tensor::{Bool, DType, Tensor};

use super::attention::{Heads, SCORES};
use super::extension::{Mask, OnCube};
use crate::AttentionOptions;

/// [`attention`](crate::attention) where a gradient goes through it and nothing is dropped: no score is kept.
pub(crate) fn attention(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    mask: Option<Tensor<3>>,
    options: AttentionOptions,
) -> Tensor<3> {
    at_once(query, key, value, mask, options, SCORES)
}

/// [`attention`], with so many scores at once.
pub(super) fn at_once(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    mask: Option<Tensor<3>>,
    options: AttentionOptions,
    scores: usize,
) -> Tensor<3> {
    let [_, queries, wide] = query.dims();
    let keys = key.dims()[1];
    let heads = Heads {
        queries: options.heads,
        keys: options.kv_heads,
        scale: options.scale(wide / options.heads) as f32,
        scores,
    };
    let mut added = mask.map(|mask| {
        // A row of nothing but padding must not become one of nothing but infinities.
        let mask = match query.dtype() {
            DType::F16 => mask.clamp_min(-65_504.0),
            _ => mask,
        };
        mask.inner().cast(query.dtype())
    });
    if options.causal {
        let plain = query.device().without_autodiff();
        // True above the diagonal that ends in the last corner.
        let later = keys.cast_signed() as i64 - queries.cast_signed() as i64;
        let hidden = Tensor::<2, Bool>::tril_mask([queries, keys], later, &plain);
        let causal = Tensor::<2>::zeros([queries, keys], (&plain, query.dtype()))
            .mask_fill(hidden, f32::NEG_INFINITY)
            .unsqueeze::<3>();
        added = Some(match added {
            Some(added) => added + causal,
            None => causal,
        });
    }
    Tensor::from_dispatch(<Dispatch as OnCube>::attended(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        match added {
            Some(added) => Mask::Given(added.into_dispatch()),
            None => Mask::Absent,
        },
        heads,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tests::device;
    use crate::reference;
    use burn::tensor::{Distribution, Tolerance};

    #[test]
    fn attention_without_scores_is_the_reference() {
        let device = device();
        let random =
            |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        for (causal, kv_heads, mask) in [
            (true, 2, None),
            (false, 4, Some([3, 1, 7])),
            (true, 1, Some([3, 5, 7])),
        ] {
            let options = AttentionOptions {
                kv_heads,
                causal,
                ..AttentionOptions::new(4)
            };
            let mask = mask.map(random);
            let values = [[3, 5, 24], [3, 7, 6 * kv_heads], [3, 7, 6 * kv_heads]].map(random);
            let weights = random([3, 5, 24]);
            let run = |attention: &dyn Fn([Tensor<3>; 3], Option<Tensor<3>>) -> Tensor<3>| {
                let inputs = values.clone().map(|value| value.autodiff().require_grad());
                let output = attention(inputs.clone(), mask.clone().map(Tensor::autodiff));
                let loss = (output.clone() * weights.clone().autodiff()).sum();
                let gradients = loss.backward();
                let mut found = vec![output.into_data()];
                found.extend(inputs.map(|input| input.grad(&gradients).unwrap().into_data()));
                found
            };
            let expected = run(&|[query, key, value], mask| {
                reference::attention(query, key, value, mask, options)
            });
            // One item at a time, two, and all.
            for scores in [1, 300, 10_000] {
                let found = run(&|[query, key, value], mask| {
                    at_once(query, key, value, mask, options, scores)
                });
                for (found, expected) in found.iter().zip(&expected) {
                    found.assert_approx_eq(expected, Tolerance::<f32>::rel_abs(1e-5, 1e-5));
                }
            }
        }
    }
}

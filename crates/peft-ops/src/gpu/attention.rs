//! Attention whose backward pass computes the weights again, some items of the batch at a time.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{Shape, Slice};

/// Scores that are there at once: 256 MiB of 16-bit numbers, or those of one item.
pub(super) const SCORES: usize = 1 << 27;

/// Heads, and the like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Of queries.
    pub(crate) queries: usize,
    /// Of keys and values; each serves neighbouring heads of queries.
    pub(crate) keys: usize,
    /// What scores are multiplied by.
    pub(crate) scale: f32,
    /// Scores that are there at once.
    pub(crate) scores: usize,
}

/// `[batch, queries, heads · width]`, keys and values of as many or fewer heads, and what is added to the scores,
/// `[batch or 1, queries or 1, keys]`.
#[derive(Clone, Debug)]
pub(super) struct Attended<B: Backend> {
    pub(super) query: FloatTensor<B>,
    pub(super) key: FloatTensor<B>,
    pub(super) value: FloatTensor<B>,
    pub(super) mask: Option<FloatTensor<B>>,
    pub(super) heads: Heads,
}

/// Sizes of some items.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    items: usize,
    queries: usize,
    keys: usize,
    /// Heads of keys.
    heads: usize,
    /// Heads of queries for each.
    group: usize,
    width: usize,
}

impl Sizes {
    /// `[items, queries, …]` with a head's neighbours one below the other: `[items, heads, group · queries, width]`.
    fn grouped<B: Backend>(self, tensor: FloatTensor<B>) -> FloatTensor<B> {
        let shape = [self.items, self.queries, self.heads, self.group, self.width];
        let tensor = B::float_reshape(tensor, Shape::from(shape));
        let tensor = B::float_permute(tensor, &[0, 2, 3, 1, 4]);
        let rows = self.group * self.queries;
        B::float_reshape(
            tensor,
            Shape::from([self.items, self.heads, rows, self.width]),
        )
    }

    /// Back from [`grouped`](Self::grouped).
    fn columns<B: Backend>(self, tensor: FloatTensor<B>) -> FloatTensor<B> {
        let shape = [self.items, self.heads, self.group, self.queries, self.width];
        let tensor = B::float_reshape(tensor, Shape::from(shape));
        let tensor = B::float_permute(tensor, &[0, 3, 1, 2, 4]);
        let wide = self.heads * self.group * self.width;
        B::float_reshape(tensor, Shape::from([self.items, self.queries, wide]))
    }

    /// Keys or values by heads, `[items, heads, keys, width]`.
    fn split<B: Backend>(self, tensor: FloatTensor<B>) -> FloatTensor<B> {
        let shape = [self.items, self.keys, self.heads, self.width];
        B::float_swap_dims(B::float_reshape(tensor, Shape::from(shape)), 1, 2)
    }

    /// Back from [`split`](Self::split).
    fn joined<B: Backend>(self, tensor: FloatTensor<B>) -> FloatTensor<B> {
        let shape = [self.items, self.keys, self.heads * self.width];
        B::float_reshape(B::float_swap_dims(tensor, 1, 2), Shape::from(shape))
    }
}

/// Some items of `tensor`, or all of one that serves every item.
fn items<B: Backend>(tensor: &FloatTensor<B>, first: usize, count: usize) -> FloatTensor<B> {
    if tensor.shape()[0] == 1 {
        return tensor.clone();
    }
    let slice = Slice::from(first..first + count);
    B::float_slice(tensor.clone(), &[slice])
}

impl<B: Backend> Attended<B> {
    /// The first item and the sizes of each part of the batch.
    fn parts(&self) -> Vec<(usize, Sizes)> {
        let (query, key) = (self.query.shape(), self.key.shape());
        let [batch, queries, wide] = [query[0], query[1], query[2]];
        let keys = key[1];
        let scores = (self.heads.queries * queries * keys).max(1);
        let most = (self.heads.scores / scores).max(1);
        (0..batch)
            .step_by(most)
            .map(|first| {
                let sizes = Sizes {
                    items: most.min(batch - first),
                    queries,
                    keys,
                    heads: self.heads.keys,
                    group: self.heads.queries / self.heads.keys,
                    width: wide / self.heads.queries,
                };
                (first, sizes)
            })
            .collect()
    }

    /// Scaled queries by groups, keys and values by heads, and the attention weights `[items, heads, group · queries, keys]`.
    fn weights(&self, first: usize, sizes: Sizes) -> [FloatTensor<B>; 4] {
        let of = |tensor| items::<B>(tensor, first, sizes.items);
        let query = B::float_mul_scalar(of(&self.query), self.heads.scale.into());
        let query = sizes.grouped::<B>(query);
        let [key, value] = [&self.key, &self.value].map(|tensor| sizes.split::<B>(of(tensor)));
        let mut scores = B::float_matmul(query.clone(), B::float_swap_dims(key.clone(), 2, 3));
        if let Some(mask) = &self.mask {
            let [many, rows] = [mask.shape()[0], mask.shape()[1]];
            let many = if many == 1 { 1 } else { sizes.items };
            let mask = B::float_reshape(of(mask), Shape::from([many, 1, 1, rows, sizes.keys]));
            let apart = [
                sizes.items,
                sizes.heads,
                sizes.group,
                sizes.queries,
                sizes.keys,
            ];
            let shape = scores.shape();
            scores = B::float_add(B::float_reshape(scores, Shape::from(apart)), mask);
            scores = B::float_reshape(scores, shape);
        }
        [query, key, value, B::softmax(scores, 3)]
    }

    /// `[batch, queries, heads · width]`.
    pub(super) fn forward(&self) -> FloatTensor<B> {
        let parts = self.parts().into_iter().map(|(first, sizes)| {
            let [_, _, value, weights] = self.weights(first, sizes);
            sizes.columns::<B>(B::float_matmul(weights, value))
        });
        joined::<B>(parts.collect())
    }

    /// The gradients of queries, keys and values.
    pub(super) fn backward(&self, gradient: &FloatTensor<B>) -> [FloatTensor<B>; 3] {
        let mut gradients = [const { Vec::new() }; 3];
        for (first, sizes) in self.parts() {
            let [query, key, value, weights] = self.weights(first, sizes);
            let gradient = sizes.grouped::<B>(items::<B>(gradient, first, sizes.items));
            let turned = |tensor: &FloatTensor<B>| B::float_swap_dims(tensor.clone(), 2, 3);
            let of_value = B::float_matmul(turned(&weights), gradient.clone());
            let of_weights = B::float_matmul(gradient, turned(&value));
            // Of softmax: what goes beyond the mean of the row.
            let weighted = B::float_mul(weights.clone(), of_weights);
            let mean = B::float_sum_dim(weighted.clone(), 3);
            let of_scores = B::float_sub(weighted, B::float_mul(weights, mean));
            let of_key = B::float_matmul(turned(&of_scores), query);
            let of_query = B::float_matmul(of_scores, key);
            let of_query = B::float_mul_scalar(of_query, self.heads.scale.into());
            let [queries, keys, values] = &mut gradients;
            queries.push(sizes.columns::<B>(of_query));
            keys.push(sizes.joined::<B>(of_key));
            values.push(sizes.joined::<B>(of_value));
        }
        gradients.map(joined::<B>)
    }
}

/// All items.
fn joined<B: Backend>(mut parts: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    match parts.len() {
        1 => parts.remove(0),
        _ => B::float_cat(parts, 0),
    }
}

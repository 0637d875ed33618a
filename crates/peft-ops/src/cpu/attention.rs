//! Scaled dot-product attention on `[batch, seq, heads · width]`: heads are blocks of columns, so
//! nothing is copied around them, and no matrix of scores outlives its block of queries.

use super::dropout::Coins;
use super::math::{dot, exp_nonpositive, max, sum, vectors};
use super::matrix::{Blocks, Matrix, MatrixMut, Mode, build_blocks, multiply};

/// Queries worked on at a time: their scores stay in the second-level cache for a thousand keys.
const QUERIES: usize = 128;

/// Sizes and settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` heads of queries.
    pub(crate) kv_heads: usize,
    pub(crate) width: usize,
    pub(crate) scale: f32,
    /// A query sees the keys up to its own place, both counted from the end.
    pub(crate) causal: bool,
    pub(crate) coins: Option<Coins>,
}

/// What is added to the scores: `[batch, rows, keys]`, where `rows` is 1 or `queries`.
#[derive(Clone, Copy)]
pub(crate) struct Mask<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) query: &'a [f32],
    pub(crate) key: &'a [f32],
    pub(crate) value: &'a [f32],
    pub(crate) mask: Option<Mask<'a>>,
}

impl Attention {
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Rows `first..first + rows` of one head of `data` `[batch, seq, heads · width]`.
    fn head(
        self,
        data: &[f32],
        seq: usize,
        heads: usize,
        item: usize,
        head: usize,
        (first, rows): (usize, usize),
    ) -> Matrix<'_> {
        let stride = heads * self.width;
        let from = (item * seq + first) * stride + head * self.width;
        Matrix::strided(&data[from..], rows, self.width, stride)
    }

    /// The attention weights of a block of queries, before dropout: `[rows, keys]` in `scores`.
    fn weights(
        self,
        inputs: Inputs<'_>,
        item: usize,
        head: usize,
        (first, rows): (usize, usize),
        scores: &mut [f32],
    ) {
        let query = self.head(
            inputs.query,
            self.queries,
            self.heads,
            item,
            head,
            (first, rows),
        );
        let key = self.head(
            inputs.key,
            self.keys,
            self.kv_heads,
            item,
            head / self.group(),
            (0, self.keys),
        );
        multiply(
            &mut MatrixMut::new(scores, rows, self.keys),
            Mode::Replace,
            query,
            key.t(),
            self.scale,
            false,
        );
        let keys = self.keys;
        vectors(
            #[inline(always)]
            || {
                for (i, row) in scores[..rows * keys].chunks_exact_mut(keys).enumerate() {
                    let place = first + i;
                    if let Some(mask) = inputs.mask {
                        let from =
                            (item * mask.rows + if mask.rows == 1 { 0 } else { place }) * keys;
                        for (score, mask) in row.iter_mut().zip(&mask.values[from..from + keys]) {
                            *score += mask;
                        }
                    }
                    let seen = if self.causal {
                        (place + 1 + keys).saturating_sub(self.queries).min(keys)
                    } else {
                        keys
                    };
                    let (row, hidden) = row.split_at_mut(seen);
                    hidden.fill(0.0);
                    let largest = max(row);
                    for score in row.iter_mut() {
                        *score = exp_nonpositive(*score - largest);
                    }
                    let share = 1.0 / sum(row);
                    for score in row.iter_mut() {
                        *score *= share;
                    }
                }
            },
        );
    }

    /// Multiplies a block of weights, or of their gradients, by dropout's factors.
    fn drop(self, item: usize, head: usize, first: usize, block: &mut [f32]) {
        let Some(coins) = self.coins else { return };
        let from = ((item * self.heads + head) * self.queries + first) * self.keys;
        vectors(
            #[inline(always)]
            || {
                for (i, value) in block.iter_mut().enumerate() {
                    *value *= coins.factor(from + i);
                }
            },
        );
    }

    /// Blocks of queries: where each starts, and its rows.
    fn query_blocks(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.queries)
            .step_by(QUERIES)
            .map(move |first| (first, QUERIES.min(self.queries - first)))
    }

    /// The context, `[batch, queries, heads · width]`.
    pub(crate) fn forward(self, inputs: Inputs<'_>) -> Vec<f32> {
        let shape = Blocks {
            rows: self.queries,
            cols: self.width,
        };
        let [context] = build_blocks(self.batch, self.heads, [shape], |item, head, [mut out]| {
            let mut scores = vec![0.0; QUERIES.min(self.queries) * self.keys];
            let value = self.head(
                inputs.value,
                self.keys,
                self.kv_heads,
                item,
                head / self.group(),
                (0, self.keys),
            );
            for (first, rows) in self.query_blocks() {
                let scores = &mut scores[..rows * self.keys];
                self.weights(inputs, item, head, (first, rows), scores);
                self.drop(item, head, first, scores);
                multiply(
                    &mut out.row_block(first, rows),
                    Mode::Replace,
                    Matrix::new(scores, rows, self.keys),
                    value,
                    1.0,
                    false,
                );
            }
        });
        context
    }

    /// Gradients of queries, keys and values, of their shapes. The weights are computed again.
    pub(crate) fn backward(self, inputs: Inputs<'_>, gradient: &[f32]) -> [Vec<f32>; 3] {
        let group = self.group();
        let of_queries = Blocks {
            rows: self.queries,
            cols: group * self.width,
        };
        let of_keys = Blocks {
            rows: self.keys,
            cols: self.width,
        };
        build_blocks(
            self.batch,
            self.kv_heads,
            [of_queries, of_keys, of_keys],
            |item, kv_head, [mut d_query, mut d_key, mut d_value]| {
                let most = QUERIES.min(self.queries) * self.keys;
                let (mut weights, mut d_weights) = (vec![0.0; most], vec![0.0; most]);
                let mut dropped = vec![0.0; if self.coins.is_some() { most } else { 0 }];
                let of_kv = |data| {
                    self.head(
                        data,
                        self.keys,
                        self.kv_heads,
                        item,
                        kv_head,
                        (0, self.keys),
                    )
                };
                let (key, value) = (of_kv(inputs.key), of_kv(inputs.value));
                for head in kv_head * group..(kv_head + 1) * group {
                    let mut d_query =
                        d_query.column_block((head - kv_head * group) * self.width, self.width);
                    for (first, rows) in self.query_blocks() {
                        let block = (first, rows);
                        let len = rows * self.keys;
                        let (weights, d_weights) = (&mut weights[..len], &mut d_weights[..len]);
                        let d_out =
                            self.head(gradient, self.queries, self.heads, item, head, block);
                        self.weights(inputs, item, head, block, weights);
                        let used = if self.coins.is_some() {
                            let dropped = &mut dropped[..len];
                            dropped.copy_from_slice(weights);
                            self.drop(item, head, first, dropped);
                            &*dropped
                        } else {
                            &*weights
                        };
                        let used = Matrix::new(used, rows, self.keys);
                        multiply(&mut d_value, Mode::Add, used.t(), d_out, 1.0, false);
                        multiply(
                            &mut MatrixMut::new(d_weights, rows, self.keys),
                            Mode::Replace,
                            d_out,
                            value.t(),
                            1.0,
                            false,
                        );
                        self.drop(item, head, first, d_weights);
                        self.through_softmax(weights, d_weights);
                        let d_scores = Matrix::new(d_weights, rows, self.keys);
                        multiply(
                            &mut d_query.row_block(first, rows),
                            Mode::Replace,
                            d_scores,
                            key,
                            self.scale,
                            false,
                        );
                        let query =
                            self.head(inputs.query, self.queries, self.heads, item, head, block);
                        multiply(
                            &mut d_key,
                            Mode::Add,
                            d_scores.t(),
                            query,
                            self.scale,
                            false,
                        );
                    }
                }
            },
        )
    }

    /// Gradients of the weights to those of the scores, in place.
    fn through_softmax(self, weights: &[f32], d_weights: &mut [f32]) {
        let keys = self.keys;
        vectors(
            #[inline(always)]
            || {
                for (p, g) in weights
                    .chunks_exact(keys)
                    .zip(d_weights.chunks_exact_mut(keys))
                {
                    let mean = dot(p, g);
                    for (g, p) in g.iter_mut().zip(p) {
                        *g = p * (*g - mean);
                    }
                }
            },
        );
    }
}

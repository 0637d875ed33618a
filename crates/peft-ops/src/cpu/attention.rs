//! Scaled dot-product attention on `[batch, seq, heads · width]`: heads are blocks of columns, so
//! nothing is copied around them, and no matrix of scores outlives its block of queries.

use super::buffers::{Blocks, build_blocks};
use super::dropout::Coins;
use super::math::{exp_nonpositive, vectors};
use super::matrix::{Matrix, MatrixMut};
use super::product::Mode;
use super::right::Right;
use crate::segments::Segments;

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
    /// Whether both sides of products are rounded to bfloat16.
    pub(crate) rounded: bool,
}

/// What is added to the scores: `[batch, rows, keys]`, where `rows` is 1 or `queries`.
#[derive(Clone, Copy)]
pub(crate) struct Mask<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
}

/// Keys or values, `[batch, keys, kv_heads · width]`: each item is dense, and there may be room behind it, as a
/// cache has.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    /// Elements from an item's beginning to that of the next one.
    pub(crate) item: usize,
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) query: &'a [f32],
    pub(crate) key: Rows<'a>,
    pub(crate) value: Rows<'a>,
    pub(crate) mask: Option<Mask<'a>>,
    pub(crate) segments: Option<&'a Segments>,
}

impl Attention {
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// `dst = alpha·lhs·rhs`, or adds that to it.
    fn multiply(
        self,
        dst: &mut MatrixMut<'_>,
        mode: Mode,
        lhs: Matrix<'_>,
        rhs: Matrix<'_>,
        alpha: f32,
    ) {
        Right::new(rhs, self.rounded).multiply(dst, mode, lhs, alpha, false);
    }

    /// All rows of one head of keys or values.
    fn kv_head(self, rows: Rows<'_>, item: usize, head: usize) -> Matrix<'_> {
        let from = item * rows.item + head * self.width;
        let stride = self.kv_heads * self.width;
        Matrix::strided(&rows.values[from..], self.keys, self.width, stride)
    }

    /// Rows `first..first + rows` of one head of `data` `[batch, queries, heads · width]`.
    fn head(
        self,
        data: &[f32],
        item: usize,
        head: usize,
        (first, rows): (usize, usize),
    ) -> Matrix<'_> {
        let stride = self.heads * self.width;
        let from = (item * self.queries + first) * stride + head * self.width;
        Matrix::strided(&data[from..], rows, self.width, stride)
    }

    /// The attention weights of a block of queries before dropout and up to a factor for each query:
    /// `[keys, rows]` in `scores`. Returns the factors.
    ///
    /// One query is one column: all sums run over rows, whole vectors at a time.
    fn weights(
        self,
        inputs: Inputs<'_>,
        item: usize,
        head: usize,
        (first, rows): (usize, usize),
        scores: &mut [f32],
    ) -> [f32; QUERIES] {
        let block = (first, rows);
        let query = self.head(inputs.query, item, head, block);
        let key = self.kv_head(inputs.key, item, head / self.group());
        let mut to = MatrixMut::new(scores, self.keys, rows);
        self.multiply(&mut to, Mode::Replace, key, query.t(), self.scale);
        if let Some(mask) = inputs.mask {
            self.add_mask(mask, item, first, rows, scores);
        }
        if let Some(segments) = inputs.segments {
            self.hide_others(segments.row(item), first, rows, scores);
        }
        if self.causal {
            // Later keys are hidden from the first queries of the block.
            for (key, scores) in scores.chunks_exact_mut(rows).enumerate() {
                let hidden = (key + self.queries).saturating_sub(self.keys + first);
                scores[..hidden.min(rows)].fill(f32::NEG_INFINITY);
            }
        }
        let mut factors = [0.0; QUERIES];
        vectors(
            #[inline(always)]
            |fma| {
                let mut largest = [f32::NEG_INFINITY; QUERIES];
                let (largest, factors) = (&mut largest[..rows], &mut factors[..rows]);
                for scores in scores.chunks_exact(rows) {
                    for (largest, score) in largest.iter_mut().zip(scores) {
                        *largest = if score > largest { *score } else { *largest };
                    }
                }
                for scores in scores.chunks_exact_mut(rows) {
                    for ((score, largest), sum) in
                        scores.iter_mut().zip(&*largest).zip(factors.iter_mut())
                    {
                        *score = exp_nonpositive(fma, *score - largest);
                        *sum += *score;
                    }
                }
                for factor in factors {
                    *factor = 1.0 / *factor;
                }
            },
        );
        factors
    }

    fn add_mask(self, mask: Mask<'_>, item: usize, first: usize, rows: usize, scores: &mut [f32]) {
        let keys = self.keys;
        let scores = scores.chunks_exact_mut(rows).enumerate();
        if mask.rows == 1 {
            let mask = &mask.values[item * keys..(item + 1) * keys];
            for (key, scores) in scores {
                for score in scores {
                    *score += mask[key];
                }
            }
        } else {
            let from = (item * mask.rows + first) * keys;
            let mask = &mask.values[from..from + rows * keys];
            for (key, scores) in scores {
                for (query, score) in scores.iter_mut().enumerate() {
                    *score += mask[query * keys + key];
                }
            }
        }
    }

    /// Hides keys of other documents than a query's, and filler. `ids` are those of the last keys; queries are the
    /// last places.
    fn hide_others(self, ids: &[i64], first: usize, rows: usize, scores: &mut [f32]) {
        // Places before those that are told are seen by all, and see all.
        let told = self.keys - ids.len();
        let place = |query: usize| self.keys - self.queries + first + query;
        let free = told.saturating_sub(place(0)).min(rows);
        let of_queries = &ids[(place(0) + free).saturating_sub(told)..];
        for (id, scores) in ids.iter().zip(scores.chunks_exact_mut(rows).skip(told)) {
            let (unknown, known) = scores.split_at_mut(free);
            if *id < 0 {
                for score in unknown {
                    *score += f32::MIN;
                }
            }
            for (score, of_query) in known.iter_mut().zip(of_queries) {
                if *id < 0 || id != of_query {
                    *score += f32::MIN;
                }
            }
        }
    }

    /// Multiplies a block of weights, or of their gradients, by dropout's factors.
    fn drop(self, item: usize, head: usize, (first, rows): (usize, usize), block: &mut [f32]) {
        let Some(coins) = self.coins else { return };
        let keys = self.keys;
        let from = ((item * self.heads + head) * self.queries + first) * keys;
        vectors(
            #[inline(always)]
            |_| {
                for (key, values) in block.chunks_exact_mut(rows).enumerate() {
                    for (query, value) in values.iter_mut().enumerate() {
                        *value *= coins.factor(from + query * keys + key);
                    }
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

    /// Scores of a block.
    fn block_scores(self) -> usize {
        QUERIES.min(self.queries) * self.keys
    }

    /// The context, `[batch, queries, heads · width]`.
    pub(crate) fn forward(self, inputs: Inputs<'_>) -> Vec<f32> {
        let shape = Blocks {
            rows: self.queries,
            cols: self.width,
        };
        let scratch = self.block_scores();
        let fill = |item, head, [mut out]: [MatrixMut<'_>; 1], scores: &mut [f32]| {
            let value = self.kv_head(inputs.value, item, head / self.group());
            for (first, rows) in self.query_blocks() {
                let scores = &mut scores[..rows * self.keys];
                let factors = self.weights(inputs, item, head, (first, rows), scores);
                self.drop(item, head, (first, rows), scores);
                let weights = Matrix::new(scores, self.keys, rows).t();
                let mut out = out.row_block(first, rows);
                self.multiply(&mut out, Mode::Replace, weights, value, 1.0);
                for (row, factor) in factors[..rows].iter().enumerate() {
                    for value in out.row(row) {
                        *value *= factor;
                    }
                }
            }
        };
        let [context] = build_blocks(self.batch, self.heads, [shape], scratch, fill);
        context
    }

    /// Gradients of queries, keys and values, of their shapes, empty where they are not `wanted`. The
    /// weights are computed again.
    pub(crate) fn backward(
        self,
        inputs: Inputs<'_>,
        gradient: &[f32],
        wanted: [bool; 3],
    ) -> [Vec<f32>; 3] {
        let [of_query, of_key, of_value] = wanted;
        let group = self.group();
        let shape = |wanted, rows, cols| Blocks {
            rows: if wanted { rows } else { 0 },
            cols,
        };
        let shapes = [
            shape(of_query, self.queries, group * self.width),
            shape(of_key, self.keys, self.width),
            shape(of_value, self.keys, self.width),
        ];
        let most = self.block_scores();
        let fill = |item, kv_head, outputs: [MatrixMut<'_>; 3], scratch: &mut [f32]| {
            let [mut d_query, mut d_key, mut d_value] = outputs;
            let (weights, rest) = scratch.split_at_mut(most);
            let (d_weights, dropped) = rest.split_at_mut(most);
            let key = self.kv_head(inputs.key, item, kv_head);
            let value = self.kv_head(inputs.value, item, kv_head);
            for head in kv_head * group..(kv_head + 1) * group {
                for (first, rows) in self.query_blocks() {
                    let block = (first, rows);
                    let of = |data| self.head(data, item, head, block);
                    let (d_out, query) = (of(gradient), of(inputs.query));
                    let len = rows * self.keys;
                    let (weights, d_weights) = (&mut weights[..len], &mut d_weights[..len]);
                    let factors = self.weights(inputs, item, head, block, weights);
                    scale_columns(weights, &factors[..rows]);
                    if of_value {
                        let used = if self.coins.is_some() {
                            let dropped = &mut dropped[..len];
                            dropped.copy_from_slice(weights);
                            self.drop(item, head, block, dropped);
                            &*dropped
                        } else {
                            &*weights
                        };
                        let used = Matrix::new(used, self.keys, rows);
                        self.multiply(&mut d_value, Mode::Add, used, d_out, 1.0);
                    }
                    if !of_query && !of_key {
                        continue;
                    }
                    let mut to = MatrixMut::new(d_weights, self.keys, rows);
                    self.multiply(&mut to, Mode::Replace, value, d_out.t(), 1.0);
                    self.drop(item, head, block, d_weights);
                    through_softmax(weights, d_weights, rows);
                    let d_scores = Matrix::new(d_weights, self.keys, rows);
                    if of_query {
                        let from = (head - kv_head * group) * self.width;
                        let mut of_head = d_query.column_block(from, self.width);
                        let mut to = of_head.row_block(first, rows);
                        self.multiply(&mut to, Mode::Replace, d_scores.t(), key, self.scale);
                    }
                    if of_key {
                        self.multiply(&mut d_key, Mode::Add, d_scores, query, self.scale);
                    }
                }
            }
        };
        let copies = if self.coins.is_some() { 3 } else { 2 };
        build_blocks(self.batch, self.kv_heads, shapes, copies * most, fill)
    }
}

/// Multiplies each column by its factor.
fn scale_columns(block: &mut [f32], factors: &[f32]) {
    vectors(
        #[inline(always)]
        |_| {
            for row in block.chunks_exact_mut(factors.len()) {
                for (value, factor) in row.iter_mut().zip(factors) {
                    *value *= factor;
                }
            }
        },
    );
}

/// Gradients of the weights to those of the scores, in place; both are `[keys, rows]`.
fn through_softmax(weights: &[f32], d_weights: &mut [f32], rows: usize) {
    vectors(
        #[inline(always)]
        |fma| {
            let mut means = [0.0; QUERIES];
            let means = &mut means[..rows];
            for (p, g) in weights.chunks_exact(rows).zip(d_weights.chunks_exact(rows)) {
                for ((mean, p), g) in means.iter_mut().zip(p).zip(g) {
                    *mean = fma.add(*p, *g, *mean);
                }
            }
            for (p, g) in weights
                .chunks_exact(rows)
                .zip(d_weights.chunks_exact_mut(rows))
            {
                for ((g, p), mean) in g.iter_mut().zip(p).zip(&*means) {
                    *g = p * (*g - mean);
                }
            }
        },
    );
}

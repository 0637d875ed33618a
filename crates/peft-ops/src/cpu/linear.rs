//! `y = x W + b + s·(x A) B`.

use std::cell::Cell;

use super::bf16::{Factors, Packed};
use super::buffers::{build, change_rows, sum_rows};
use super::dropout::Coins;
use super::matrix::{Matrix, MatrixMut};
use super::product::{Mode, multiply, product};
use super::right::{FEW_ROWS, Right};
use super::{gelu, math, quantized};
use crate::format::QuantizedMatrix;

/// Sizes of a linear layer over `rows` inputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) rows: usize,
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
}

/// Factors of a low-rank addition, `[in, r]` and `[r, out]`.
#[derive(Clone, Copy)]
pub(crate) struct LowRank<'a> {
    pub(crate) down: &'a [f32],
    pub(crate) up: &'a [f32],
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

impl LowRank<'_> {
    /// For a product that rounds its sides: of `x`, `[rows, in]`.
    fn factors(&self, sizes: Sizes) -> Factors {
        let down = Matrix::new(self.down, sizes.d_in, self.rank);
        let up = Matrix::new(self.up, self.rank, sizes.d_out);
        Factors::new(down, up, [1.0, self.scale])
    }

    /// The same of the output's gradient, `[rows, out]`.
    fn factors_back(&self, sizes: Sizes) -> Factors {
        let down = Matrix::new(self.down, sizes.d_in, self.rank);
        let up = Matrix::new(self.up, self.rank, sizes.d_out);
        Factors::new(up.t(), down.t(), [self.scale, 1.0])
    }
}

/// What a layer is applied to.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// `[rows, in]`.
    pub(crate) data: &'a [f32],
    /// Whether the layer sees GELU of it.
    pub(crate) gelu: bool,
}

/// Weights of at most this many elements stay in the caches while a layer goes through its rows block
/// by block; larger ones are read once, for all rows.
const SMALL_WEIGHT: usize = 1 << 20;
/// Rows of a block forward. The weight is brought into a product's own order for each block: below this,
/// that costs more than what is gained by work on a block that is still in the cache.
const FORWARD_BLOCK: usize = 512;
/// The same backward, where the weight is also transposed.
const BACKWARD_BLOCK: usize = 1024;
/// The same in both directions with a weight that is in order already.
const ORDERED_BLOCK: usize = 256;

/// The weight as products with blocks of `block` rows want it, and how many rows there are in those blocks.
fn in_order(sizes: Sizes, weight: Right<'_>, block: usize) -> (Option<Packed>, usize) {
    if !weight.rounds() {
        return (None, sizes.block(block));
    }
    let block = sizes.block(ORDERED_BLOCK);
    // In blocks, each would do it for itself.
    let packed = (block < sizes.rows).then(|| weight.packed()).flatten();
    (packed, block)
}

impl Sizes {
    /// How many rows are worked on at a time: a block, if there is one for each thread, or all.
    fn block(self, block: usize) -> usize {
        let blocks = self.rows / block;
        let threads = rayon::current_num_threads();
        if threads == 1 || blocks < threads || self.d_in * self.d_out > SMALL_WEIGHT {
            return self.rows.max(1);
        }
        block
    }
}

/// The output `[rows, out]`, and `x A` `[rows, r]`, empty without factors.
///
/// Bias and low rank are accumulated in the output while it is in the cache; nothing else of its size
/// is made, nor is GELU of the input for more than a block.
pub(crate) fn forward(
    sizes: Sizes,
    input: Input<'_>,
    weight: Right<'_>,
    bias: Option<&[f32]>,
    low_rank: Option<LowRank<'_>>,
) -> [Vec<f32>; 2] {
    let Sizes { rows, d_in, d_out } = sizes;
    let rank = low_rank.map_or(0, |low_rank| low_rank.rank);
    let (packed, block) = in_order(sizes, weight, FORWARD_BLOCK);
    let weight = packed.as_ref().map_or(weight, Right::Packed);
    let alone = block >= rows;
    let at_once = bias.filter(|_| weight.rounds());
    let rounded = low_rank.filter(|_| weight.rounds_with(rows));
    let factors = rounded.map(|low_rank| low_rank.factors(sizes));
    build(rows, [d_out, rank], block, |first, [output, through]| {
        let count = block.min(rows - first);
        input.seen([first, count], d_in, alone, |x| {
            if let Some(factors) = &factors {
                let through = through.zeros();
                let output = weight.product_with(output, x, bias, factors, through, alone);
                return [output, through];
            }
            let output = weight.product(output, x, at_once, alone);
            let through = if let Some(LowRank {
                down, up, scale, ..
            }) = low_rank
            {
                let through = through.product(x, Matrix::new(down, d_in, rank), 1.0, alone);
                let t = Matrix::new(through, count, rank);
                let up = Matrix::new(up, rank, d_out);
                let mut y = MatrixMut::new(output, count, d_out);
                multiply(&mut y, Mode::Add, t, up, scale, alone);
                through
            } else {
                through.zeros()
            };
            if let Some(bias) = bias.filter(|_| at_once.is_none()) {
                if alone {
                    change_rows(output, d_out, |_, part| math::add_row(part, bias));
                } else {
                    math::add_row(output, bias);
                }
            }
            [output, through]
        })
    })
}

/// The same with a quantized weight, whose rows are decoded panel by panel.
pub(crate) fn forward_packed(
    sizes: Sizes,
    x: &[f32],
    weight: &dyn QuantizedMatrix,
    bias: Option<&[f32]>,
    low_rank: Option<LowRank<'_>>,
    rounded: bool,
) -> [Vec<f32>; 2] {
    if rounded && sizes.rows >= FEW_ROWS {
        let factors = low_rank.map(|low_rank| low_rank.factors(sizes));
        return quantized::forward_rounded(x, sizes.rows, weight, bias, factors.as_ref());
    }
    let mut output = quantized::forward(x, sizes.rows, weight);
    let through = low_rank.map(|low_rank| add_low_rank(sizes, &mut output, x, low_rank));
    if let Some(bias) = bias {
        change_rows(&mut output, sizes.d_out, |_, part| {
            math::add_row(part, bias);
        });
    }
    [output, through.unwrap_or_default()]
}

thread_local! {
    /// GELU of a block.
    static ACTIVATED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl Input<'_> {
    /// Hands `work` what the layer sees of `rows` rows from `first` on; on all threads or not.
    fn seen<R>(
        self,
        [first, rows]: [usize; 2],
        d_in: usize,
        parallel: bool,
        work: impl FnOnce(Matrix<'_>) -> R,
    ) -> R {
        let x = &self.data[first * d_in..(first + rows) * d_in];
        if !self.gelu {
            return work(Matrix::new(x, rows, d_in));
        }
        if parallel {
            return work(Matrix::new(&gelu::forward(x), rows, d_in));
        }
        let mut scratch = ACTIVATED.take();
        if scratch.len() < x.len() {
            scratch.resize(x.len(), 0.0);
        }
        gelu::forward_into(x, &mut scratch[..x.len()]);
        let result = work(Matrix::new(&scratch[..x.len()], rows, d_in));
        ACTIVATED.set(scratch);
        result
    }
}

/// The gradient of the input, `[rows, in]`: `g Wᵀ + (g Bᵀ·s) Aᵀ`, through GELU where the layer saw
/// that; and `g Bᵀ·s`, `[rows, r]`. Without a weight there is none of its term.
pub(crate) fn input_gradient(
    sizes: Sizes,
    gradient: &[f32],
    weight: Option<Right<'_>>,
    low_rank: Option<LowRank<'_>>,
    input: Option<&[f32]>,
) -> [Vec<f32>; 2] {
    let Sizes { rows, d_in, d_out } = sizes;
    let weight = weight.map(Right::t);
    let rank = low_rank.map_or(0, |low_rank| low_rank.rank);
    let (packed, block) = match weight {
        Some(weight) => in_order(sizes, weight, BACKWARD_BLOCK),
        None => (None, sizes.block(BACKWARD_BLOCK)),
    };
    let weight = packed.as_ref().map(Right::Packed).or(weight);
    let alone = block >= rows;
    let rounds = weight.is_some_and(|weight| weight.rounds_with(rows));
    let factors = low_rank.filter(|_| rounds);
    let factors = factors.map(|low_rank| low_rank.factors_back(sizes));
    build(rows, [d_in, rank], block, |first, [dx, back]| {
        let count = block.min(rows - first);
        let dy = Matrix::new(gradient, rows, d_out).rows(first, count);
        let [dx, back] = if let Some((weight, factors)) = weight.zip(factors.as_ref()) {
            let back = back.zeros();
            let dx = weight.product_with(dx, dy, None, factors, back, alone);
            [dx, back]
        } else {
            let dx = match weight {
                Some(weight) => weight.product(dx, dy, None, alone),
                None => dx.zeros(),
            };
            let back = if let Some(LowRank {
                down, up, scale, ..
            }) = low_rank
            {
                let up = Matrix::new(up, rank, d_out);
                let back = back.product(dy, up.t(), scale, alone);
                let down = Matrix::new(down, d_in, rank);
                let mut sum = MatrixMut::new(dx, count, d_in);
                let back_rows = Matrix::new(back, count, rank);
                multiply(&mut sum, Mode::Add, back_rows, down.t(), 1.0, alone);
                back
            } else {
                back.zeros()
            };
            [dx, back]
        };
        if let Some(x) = input {
            let x = &x[first * d_in..(first + count) * d_in];
            if alone {
                gelu::backward_in_place(x, dx);
            } else {
                gelu::through(x, dx);
            }
        }
        [dx, back]
    })
}

/// `g Bᵀ·s`, `[rows, r]`: what is left to compute of [`input_gradient`] where the input is frozen.
pub(crate) fn low_rank_gradient(
    sizes: Sizes,
    gradient: &[f32],
    up: &[f32],
    rank: usize,
    scale: f32,
) -> Vec<f32> {
    let dy = Matrix::new(gradient, sizes.rows, sizes.d_out);
    product(dy, Matrix::new(up, rank, sizes.d_out).t(), scale)
}

/// Adds `drop(g Aᵀ)` to the input's gradient, for `g` `[rows, r]` and A `[in, r]`.
pub(crate) fn add_dropped(sizes: Sizes, g: &[f32], down: &[f32], coins: Coins, to: &mut [f32]) {
    let rank = g.len() / sizes.rows.max(1);
    let (g, down) = (
        Matrix::new(g, sizes.rows, rank),
        Matrix::new(down, sizes.d_in, rank),
    );
    let seen = product(g, down.t(), 1.0);
    change_rows(to, 1, |first, part| {
        math::vectors(
            #[inline(always)]
            |fma| {
                for (i, value) in part.iter_mut().enumerate() {
                    *value = fma.add(seen[first + i], coins.factor(first + i), *value);
                }
            },
        );
    });
}

/// Columns that fill a vector.
const VECTOR: usize = 16;

/// `xᵀ g`, `[width of x, width of g]`, for `rows` rows of both.
pub(crate) fn outer(x: &[f32], g: &[f32], rows: usize, scale: f32) -> Vec<f32> {
    let [wide, narrow] = [x, g].map(|data| data.len() / rows.max(1));
    let (x, g) = (Matrix::new(x, rows, wide), Matrix::new(g, rows, narrow));
    if narrow >= VECTOR || wide <= narrow {
        return product(x.t(), g, scale);
    }
    // Vectors lie along the columns: with so few, most of each would be empty.
    let turned = product(g.t(), x, scale);
    let mut out = vec![0.0; wide * narrow];
    for (index, row) in turned.chunks_exact(wide).enumerate() {
        for (out, value) in out.chunks_exact_mut(narrow).zip(row) {
            out[index] = *value;
        }
    }
    out
}

/// The sum over all rows, `[width]`.
pub(crate) fn column_sums(data: &[f32], width: usize) -> Vec<f32> {
    sum_rows(
        data.len() / width.max(1),
        width,
        width,
        |first, last, sums| {
            math::vectors(
                #[inline(always)]
                |_| {
                    for row in data[first * width..last * width].chunks_exact(width) {
                        for (sum, value) in sums.iter_mut().zip(row) {
                            *sum += value;
                        }
                    }
                },
            );
        },
    )
}

/// Euclidean norms of the columns, `[width]`.
pub(crate) fn column_norms(data: &[f32], width: usize) -> Vec<f32> {
    let rows = data.len() / width.max(1);
    let mut norms = sum_rows(rows, width, width, |first, last, sums| {
        math::vectors(
            #[inline(always)]
            |fma| {
                for row in data[first * width..last * width].chunks_exact(width) {
                    for (sum, value) in sums.iter_mut().zip(row) {
                        *sum = fma.add(*value, *value, *sum);
                    }
                }
            },
        );
    });
    for norm in &mut norms {
        *norm = norm.sqrt();
    }
    norms
}

/// Adds `s·(x A) B` to rows in place; returns `x A`.
pub(crate) fn add_low_rank(
    sizes: Sizes,
    output: &mut [f32],
    input: &[f32],
    low_rank: LowRank<'_>,
) -> Vec<f32> {
    let Sizes { rows, d_in, d_out } = sizes;
    let LowRank {
        down,
        up,
        rank,
        scale,
    } = low_rank;
    let x = Matrix::new(input, rows, d_in);
    let down = product(x, Matrix::new(down, d_in, rank), 1.0);
    multiply(
        &mut MatrixMut::new(output, rows, d_out),
        Mode::Add,
        Matrix::new(&down, rows, rank),
        Matrix::new(up, rank, d_out),
        scale,
        true,
    );
    down
}

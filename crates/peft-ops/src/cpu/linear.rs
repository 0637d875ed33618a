//! `y = x W + b + s·(x A) B`.

use super::math;
use super::matrix::{Matrix, MatrixMut, Mode, build_rows, multiply, product, sum_rows};

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

/// The output `[rows, out]`, and `x A` `[rows, r]` where there are factors.
///
/// Bias and low rank are accumulated in the output: nothing else of its size is made.
pub(crate) fn forward(
    sizes: Sizes,
    input: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    low_rank: Option<LowRank<'_>>,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let Sizes { rows, d_in, d_out } = sizes;
    let x = Matrix::new(input, rows, d_in);
    let w = Matrix::new(weight, d_in, d_out);
    let mut output = match bias {
        None => product(x, w, 1.0),
        Some(bias) => {
            let mut output = build_rows(rows, d_out, |_, part| {
                for row in part.chunks_exact_mut(d_out) {
                    row.copy_from_slice(bias);
                }
            });
            let mut y = MatrixMut::new(&mut output, rows, d_out);
            multiply(&mut y, Mode::Add, x, w, 1.0, true);
            output
        }
    };
    let down = low_rank.map(
        |LowRank {
             down,
             up,
             rank,
             scale,
         }| {
            let down = product(x, Matrix::new(down, d_in, rank), 1.0);
            let mut y = MatrixMut::new(&mut output, rows, d_out);
            let t = Matrix::new(&down, rows, rank);
            let up = Matrix::new(up, rank, d_out);
            multiply(&mut y, Mode::Add, t, up, scale, true);
            down
        },
    );
    (output, down)
}

/// `gradient Bᵀ·s`, `[rows, r]`: what both factors' and the input's gradients need.
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

/// The gradient of the input, `[rows, in]`: `gradient Wᵀ + back Aᵀ`, with A, `back` (what
/// [`low_rank_gradient`] gives) and the rank.
pub(crate) fn input_gradient(
    sizes: Sizes,
    gradient: &[f32],
    weight: Option<&[f32]>,
    low_rank: Option<(&[f32], &[f32], usize)>,
) -> Vec<f32> {
    let Sizes { rows, d_in, d_out } = sizes;
    let dense = weight.map(|weight| {
        let weight = Matrix::new(weight, d_in, d_out);
        product(Matrix::new(gradient, rows, d_out), weight.t(), 1.0)
    });
    let low_rank = low_rank.map(|(down, back, rank)| {
        let down = Matrix::new(down, d_in, rank);
        (Matrix::new(back, rows, rank), down.t())
    });
    match (dense, low_rank) {
        (Some(mut dx), Some((back, down))) => {
            let mut sum = MatrixMut::new(&mut dx, rows, d_in);
            multiply(&mut sum, Mode::Add, back, down, 1.0, true);
            dx
        }
        (Some(dx), None) => dx,
        (None, Some((back, down))) => product(back, down, 1.0),
        (None, None) => unreachable!("a layer has a weight or factors"),
    }
}

/// `xᵀ g`, `[width of x, width of g]`, for `rows` rows of both.
pub(crate) fn outer(x: &[f32], g: &[f32], rows: usize, scale: f32) -> Vec<f32> {
    let width = |data: &[f32]| data.len() / rows.max(1);
    product(
        Matrix::new(x, rows, width(x)).t(),
        Matrix::new(g, rows, width(g)),
        scale,
    )
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
                || {
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

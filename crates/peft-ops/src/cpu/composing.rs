//! Weights and inputs that a method changes by few numbers, and the gradients of those.

use super::buffers::{build, build_rows, change_rows, sum_rows};
use super::math::{Fma, vectors};
use super::matrix::{Matrix, MatrixMut};
use super::product::{Mode, multiply, product};

/// Elements of a weight that are composed at a time: 256 KiB, which stay in the second-level cache.
const BLOCK: usize = 1 << 16;

/// A matrix `[rows, cols]`, row-major, and two factors `[rows, rank]` and `[rank, cols]`.
#[derive(Clone, Copy)]
pub(crate) struct Factored<'a> {
    pub(crate) matrix: &'a [f32],
    pub(crate) down: &'a [f32],
    pub(crate) up: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) rank: usize,
}

impl<'a> Factored<'a> {
    fn down(self) -> Matrix<'a> {
        Matrix::new(self.down, self.rows, self.rank)
    }

    fn up(self) -> Matrix<'a> {
        Matrix::new(self.up, self.rank, self.cols)
    }

    /// Rows that are composed at a time.
    fn block(self) -> usize {
        (BLOCK / self.cols.max(1)).clamp(1, self.rows.max(1))
    }

    /// `W + s·A B`.
    pub(crate) fn sum(self, scale: f32) -> Vec<f32> {
        let (rows, cols, block) = (self.rows, self.cols, self.block());
        let [out] = build(rows, [cols], block, |first, [out]| {
            let count = block.min(rows - first);
            let out = out.copy(&self.matrix[first * cols..(first + count) * cols]);
            let down = self.down().rows(first, count);
            let mut sum = MatrixMut::new(out, count, cols);
            multiply(&mut sum, Mode::Add, down, self.up(), scale, rows <= block);
            [out]
        });
        out
    }

    /// `W ⊙ (1 + A B)`.
    pub(crate) fn scaled(self) -> Vec<f32> {
        let (rows, cols, block) = (self.rows, self.cols, self.block());
        let [out] = build(rows, [cols], block, |first, [out]| {
            let count = block.min(rows - first);
            let down = self.down().rows(first, count);
            let out = out.product(down, self.up(), 1.0, rows <= block);
            let matrix = &self.matrix[first * cols..];
            vectors(
                #[inline(always)]
                |fma| {
                    for (out, weight) in out.iter_mut().zip(matrix) {
                        *out = fma.add(*out, *weight, *weight);
                    }
                },
            );
            [out]
        });
        out
    }

    /// Gradients of A and B, for the gradient of `s·A B`.
    pub(crate) fn factor_gradients(
        self,
        gradient: &[f32],
        scale: f32,
        [of_down, of_up]: [bool; 2],
    ) -> [Option<Vec<f32>>; 2] {
        let gradient = Matrix::new(gradient, self.rows, self.cols);
        [
            of_down.then(|| product(gradient, self.up().t(), scale)),
            of_up.then(|| product(self.down().t(), gradient, scale)),
        ]
    }
}

/// Multiplies numbers by others, in place.
pub(crate) fn multiply_by(numbers: &mut [f32], factors: &[f32]) {
    change_rows(numbers, 1, |first, part| {
        vectors(
            #[inline(always)]
            |_| {
                for (number, factor) in part.iter_mut().zip(&factors[first..]) {
                    *number *= factor;
                }
            },
        );
    });
}

/// Rows `[.., width]` times a row of factors, plus another row where there is one.
pub(crate) fn affine(x: &[f32], scale: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let width = scale.len();
    let rows = x.len() / width.max(1);
    build_rows(rows, width, |first, part| {
        let x = x[first * width..].chunks_exact(width);
        vectors(
            #[inline(always)]
            |fma| {
                for (out, x) in part.chunks_exact_mut(width).zip(x) {
                    match bias {
                        Some(bias) => {
                            for (((out, x), scale), bias) in
                                out.iter_mut().zip(x).zip(scale).zip(bias)
                            {
                                *out = fma.add(*x, *scale, *bias);
                            }
                        }
                        None => {
                            for ((out, x), scale) in out.iter_mut().zip(x).zip(scale) {
                                *out = x * scale;
                            }
                        }
                    }
                }
            },
        );
    })
}

/// Multiplies rows by a row of factors, in place.
pub(crate) fn scale_columns(rows: &mut [f32], scale: &[f32]) {
    let width = scale.len();
    change_rows(rows, width, |_, part| {
        vectors(
            #[inline(always)]
            |_| {
                for row in part.chunks_exact_mut(width) {
                    for (value, scale) in row.iter_mut().zip(scale) {
                        *value *= scale;
                    }
                }
            },
        );
    });
}

/// `Σ x ⊙ g` over rows, `[width]`.
pub(crate) fn column_products(x: &[f32], g: &[f32], width: usize) -> Vec<f32> {
    let rows = x.len() / width.max(1);
    sum_rows(rows, width, width, |first, last, sums| {
        let range = first * width..last * width;
        let pairs = x[range.clone()]
            .chunks_exact(width)
            .zip(g[range].chunks_exact(width));
        vectors(
            #[inline(always)]
            |fma| {
                for (x, g) in pairs {
                    for ((sum, x), g) in sums.iter_mut().zip(x).zip(g) {
                        *sum = fma.add(*x, *g, *sum);
                    }
                }
            },
        );
    })
}

/// Matrices `[size, size]` along a diagonal.
#[derive(Clone, Copy)]
pub(crate) struct Diagonal<'a> {
    /// One behind the other.
    pub(crate) blocks: &'a [f32],
    pub(crate) size: usize,
}

/// Blocks of at least this size are multiplied as matrices.
const LARGE: usize = 64;

impl Diagonal<'_> {
    fn width(self) -> usize {
        self.blocks.len() / self.size.max(1)
    }

    /// `x·diag(R₁, R₂, …)`, or with the transposed blocks: that is the input's gradient.
    pub(crate) fn apply(self, x: &[f32], transposed: bool) -> Vec<f32> {
        let (width, size) = (self.width(), self.size);
        let rows = x.len() / width.max(1);
        if size >= LARGE {
            return self.as_matrices(x, transposed);
        }
        let turned;
        let blocks = if transposed {
            turned = self.transposed();
            turned.as_slice()
        } else {
            self.blocks
        };
        build_rows(rows, width, |first, part| {
            let x = &x[first * width..first * width + part.len()];
            vectors(
                #[inline(always)]
                |fma| match size {
                    2 => rotated::<2>(fma, x, part, blocks),
                    4 => rotated::<4>(fma, x, part, blocks),
                    8 => rotated::<8>(fma, x, part, blocks),
                    16 => rotated::<16>(fma, x, part, blocks),
                    32 => rotated::<32>(fma, x, part, blocks),
                    _ => rotated_any(fma, x, part, blocks, size),
                },
            );
        })
    }

    fn as_matrices(self, x: &[f32], transposed: bool) -> Vec<f32> {
        let (width, size) = (self.width(), self.size);
        let rows = x.len() / width;
        let task = (BLOCK / width).clamp(1, rows.max(1));
        let [out] = build(rows, [width], task, |first, [out]| {
            let count = task.min(rows - first);
            let out = out.zeros();
            let mut all = MatrixMut::new(out, count, width);
            let x = Matrix::new(x, rows, width).rows(first, count);
            for (at, block) in self.blocks.chunks_exact(size * size).enumerate() {
                let block = Matrix::new(block, size, size);
                let block = if transposed { block.t() } else { block };
                multiply(
                    &mut all.column_block(at * size, size),
                    Mode::Replace,
                    x.columns(at * size, size),
                    block,
                    1.0,
                    false,
                );
            }
            [out]
        });
        out
    }

    fn transposed(self) -> Vec<f32> {
        let size = self.size;
        let mut turned = Vec::with_capacity(self.blocks.len());
        for block in self.blocks.chunks_exact(size * size) {
            for row in 0..size {
                turned.extend((0..size).map(|column| block[column * size + row]));
            }
        }
        turned
    }

    /// The gradient of the blocks: of each `xᵢᵀ gᵢ`.
    pub(crate) fn gradient(self, x: &[f32], g: &[f32]) -> Vec<f32> {
        let (width, size) = (self.width(), self.size);
        let rows = x.len() / width.max(1);
        if size >= LARGE {
            let (x, g) = (Matrix::new(x, rows, width), Matrix::new(g, rows, width));
            let of =
                |first: usize| product(x.columns(first, size).t(), g.columns(first, size), 1.0);
            return (0..width).step_by(size).flat_map(of).collect();
        }
        sum_rows(rows, width, self.blocks.len(), |first, last, sums| {
            let range = first * width..last * width;
            let (x, g) = (&x[range.clone()], &g[range]);
            vectors(
                #[inline(always)]
                |fma| match size {
                    2 => outer::<2>(fma, x, g, sums),
                    4 => outer::<4>(fma, x, g, sums),
                    8 => outer::<8>(fma, x, g, sums),
                    16 => outer::<16>(fma, x, g, sums),
                    32 => outer::<32>(fma, x, g, sums),
                    _ => outer_any(fma, x, g, sums, size),
                },
            );
        })
    }
}

/// Rows whose parts of `SIZE` are each multiplied by a block.
#[inline(always)]
fn rotated<const SIZE: usize>(fma: Fma, x: &[f32], out: &mut [f32], blocks: &[f32]) {
    let width = blocks.len() / SIZE;
    let (blocks, _) = blocks.as_chunks::<SIZE>();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let (x, _) = x.as_chunks::<SIZE>();
        let (out, _) = out.as_chunks_mut::<SIZE>();
        let blocks = blocks.chunks_exact(SIZE);
        for ((x, out), block) in x.iter().zip(out).zip(blocks) {
            let mut sums = [0.0_f32; SIZE];
            for (x, row) in x.iter().zip(block) {
                for (sum, element) in sums.iter_mut().zip(row) {
                    *sum = fma.add(*x, *element, *sum);
                }
            }
            *out = sums;
        }
    }
}

/// The same of any size.
#[inline(always)]
fn rotated_any(fma: Fma, x: &[f32], out: &mut [f32], blocks: &[f32], size: usize) {
    let width = blocks.len() / size;
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let parts = x.chunks_exact(size).zip(out.chunks_exact_mut(size));
        for ((x, out), block) in parts.zip(blocks.chunks_exact(size * size)) {
            for (x, row) in x.iter().zip(block.chunks_exact(size)) {
                for (sum, element) in out.iter_mut().zip(row) {
                    *sum = fma.add(*x, *element, *sum);
                }
            }
        }
    }
}

/// Adds `xᵢᵀ gᵢ` of all rows to every block's sums.
#[inline(always)]
fn outer<const SIZE: usize>(fma: Fma, x: &[f32], g: &[f32], sums: &mut [f32]) {
    let width = sums.len() / SIZE;
    let (sums, _) = sums.as_chunks_mut::<SIZE>();
    for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
        let (x, _) = x.as_chunks::<SIZE>();
        let (g, _) = g.as_chunks::<SIZE>();
        let sums = sums.chunks_exact_mut(SIZE);
        for ((x, g), block) in x.iter().zip(g).zip(sums) {
            for (x, row) in x.iter().zip(block) {
                for (sum, g) in row.iter_mut().zip(g) {
                    *sum = fma.add(*x, *g, *sum);
                }
            }
        }
    }
}

/// The same of any size.
#[inline(always)]
fn outer_any(fma: Fma, x: &[f32], g: &[f32], sums: &mut [f32], size: usize) {
    let width = sums.len() / size;
    for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
        let parts = x.chunks_exact(size).zip(g.chunks_exact(size));
        for ((x, g), block) in parts.zip(sums.chunks_exact_mut(size * size)) {
            for (x, row) in x.iter().zip(block.chunks_exact_mut(size)) {
                for (sum, g) in row.iter_mut().zip(g) {
                    *sum = fma.add(*x, *g, *sum);
                }
            }
        }
    }
}

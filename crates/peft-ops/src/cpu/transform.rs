//! Fast transforms of rows: Hadamard's, in place, and Fourier's, by the `realfft` crate.

use std::sync::Arc;

use rayon::prelude::*;
use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use super::buffers::{build, sum_rows};
use super::math::{Fma, vectors};

/// Numbers that a step of a transform takes at a time: one AVX-512 register.
const LANES: usize = 16;

/// Hadamard's matrix of [`LANES`]: entry (i, j) is negative where i and j have an odd number of binary ones in common.
const SMALL: [[f32; LANES]; LANES] = {
    let mut matrix = [[1.0; LANES]; LANES];
    let mut at = 0;
    while at < LANES * LANES {
        let (row, column) = (at / LANES, at % LANES);
        if (row & column).count_ones() % 2 == 1 {
            matrix[row][column] = -1.0;
        }
        at += 1;
    }
    matrix
};

/// A vector of a power of two, times Hadamard's matrix of that size, in place.
#[inline(always)]
fn hadamard(fma: Fma, x: &mut [f32]) {
    if x.len() < LANES {
        let mut half = 1;
        while half < x.len() {
            for pair in x.chunks_exact_mut(2 * half) {
                let (left, right) = pair.split_at_mut(half);
                for (a, b) in left.iter_mut().zip(right) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        return;
    }
    let (parts, _) = x.as_chunks_mut::<LANES>();
    for part in parts.iter_mut() {
        // A small product is faster than to exchange numbers within a register.
        let mut sums = [0.0_f32; LANES];
        for (value, row) in part.iter().zip(&SMALL) {
            for (sum, sign) in sums.iter_mut().zip(row) {
                *sum = fma.add(*value, *sign, *sum);
            }
        }
        *part = sums;
    }
    // Two doublings at a time, so that each number is read and written half as often.
    let mut half = 1;
    while 4 * half <= parts.len() {
        for group in parts.chunks_exact_mut(4 * half) {
            let (left, right) = group.split_at_mut(2 * half);
            let ((a, b), (c, d)) = (left.split_at_mut(half), right.split_at_mut(half));
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                four(a, b, c, d);
            }
        }
        half *= 4;
    }
    if half < parts.len() {
        let (left, right) = parts.split_at_mut(half);
        for (a, b) in left.iter_mut().zip(right) {
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
    }
}

type Lanes = [f32; LANES];

/// Sums and differences of four registers.
#[inline(always)]
fn four(a: &mut Lanes, b: &mut Lanes, c: &mut Lanes, d: &mut Lanes) {
    let mut out = [[0.0; LANES]; 4];
    for lane in 0..LANES {
        let (sum, difference) = (a[lane] + b[lane], a[lane] - b[lane]);
        let (other_sum, other_difference) = (c[lane] + d[lane], c[lane] - d[lane]);
        out[0][lane] = sum + other_sum;
        out[1][lane] = difference + other_difference;
        out[2][lane] = sum - other_sum;
        out[3][lane] = difference - other_difference;
    }
    [*a, *b, *c, *d] = out;
}

/// Random diagonals between two of Hadamard's transforms, in blocks of `size`: `H (G ⊙ v)`, one block behind the other.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'a> {
    /// G, `[blocks, size]`.
    pub(crate) diagonals: &'a [f32],
    /// A power of two.
    pub(crate) size: usize,
}

impl Blocks<'_> {
    /// `w + H (G ⊙ v)`, for as many elements as w has.
    pub(crate) fn add(self, w: &[f32], v: &[f32]) -> Vec<f32> {
        let size = self.size;
        let whole = w.len() / size;
        let [mut out] = build(whole, [size], task(size), |first, [out]| {
            let out = out.zeros();
            let range = first * size..first * size + out.len();
            let (w, diagonals) = (&w[range.clone()], &self.diagonals[range]);
            vectors(
                #[inline(always)]
                |fma| {
                    let blocks = w.chunks_exact(size).zip(diagonals.chunks_exact(size));
                    for (out, (w, g)) in out.chunks_exact_mut(size).zip(blocks) {
                        for ((out, g), v) in out.iter_mut().zip(g).zip(v) {
                            *out = g * v;
                        }
                        hadamard(fma, out);
                        for (out, w) in out.iter_mut().zip(w) {
                            *out += w;
                        }
                    }
                },
            );
            [out]
        });
        // The weight ends within the last block.
        let rest = &w[whole * size..];
        if !rest.is_empty() {
            let g = &self.diagonals[whole * size..];
            let mut last: Vec<f32> = g.iter().zip(v).map(|(g, v)| g * v).collect();
            vectors(
                #[inline(always)]
                |fma| hadamard(fma, &mut last),
            );
            out.extend(last.iter().zip(rest).map(|(last, w)| last + w));
        }
        out
    }

    /// The gradient of v: `Σ G ⊙ (H g)` over the blocks.
    pub(crate) fn gradient(self, g: &[f32]) -> Vec<f32> {
        let size = self.size;
        sum_rows(g.len().div_ceil(size), size, size, |first, last, sums| {
            let mut block = vec![0.0; size];
            let end = g.len().min(last * size);
            let parts = g[first * size..end].chunks(size);
            let diagonals = self.diagonals[first * size..last * size].chunks_exact(size);
            vectors(
                #[inline(always)]
                |fma| {
                    for (part, diagonal) in parts.zip(diagonals) {
                        block[..part.len()].copy_from_slice(part);
                        block[part.len()..].fill(0.0);
                        hadamard(fma, &mut block);
                        for ((sum, x), g) in sums.iter_mut().zip(&block).zip(diagonal) {
                            *sum = fma.add(*x, *g, *sum);
                        }
                    }
                },
            );
        })
    }
}

/// Blocks that one task transforms.
fn task(size: usize) -> usize {
    ((1 << 14) / size).max(1)
}

/// Waves along rows of a matrix: a cosine and a sine for each of some frequencies.
#[derive(Clone)]
pub(crate) struct Waves {
    /// Of turns in a row; at most half of the row's width. No two are the same.
    frequencies: Vec<usize>,
    width: usize,
    inverse: Arc<dyn ComplexToReal<f32>>,
    forward: Arc<dyn RealToComplex<f32>>,
}

impl std::fmt::Debug for Waves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} waves of {}", self.frequencies.len(), self.width)
    }
}

impl Waves {
    pub(crate) fn new(frequencies: &[usize], width: usize) -> Self {
        assert!(
            frequencies.iter().all(|frequency| *frequency <= width / 2),
            "a frequency above half of the width {width}"
        );
        let mut planner = RealFftPlanner::<f32>::new();
        Self {
            frequencies: frequencies.to_vec(),
            width,
            inverse: planner.plan_fft_inverse(width),
            forward: planner.plan_fft_forward(width),
        }
    }

    /// Frequencies.
    pub(crate) fn count(&self) -> usize {
        self.frequencies.len()
    }

    /// `W + s·C B` for coefficients C `[rows, 2 · frequencies]`, those of a frequency's cosine and sine side by side, and
    /// waves B.
    pub(crate) fn add(&self, w: &[f32], coefficients: &[f32], scale: f32) -> Vec<f32> {
        let width = self.width;
        let columns = 2 * self.count();
        let rows = w.len() / width;
        let task = task(width);
        let [out] = build(rows, [width], task, |first, [out]| {
            let out = out.zeros();
            let mut spectrum = self.inverse.make_input_vec();
            let mut scratch = self.inverse.make_scratch_vec();
            let w = w[first * width..].chunks_exact(width);
            let coefficients = coefficients[first * columns..].chunks_exact(columns);
            for ((out, w), coefficients) in out.chunks_exact_mut(width).zip(w).zip(coefficients) {
                spectrum.fill(Complex::default());
                for (frequency, pair) in self.frequencies.iter().zip(coefficients.chunks_exact(2)) {
                    // A wave is there twice, turned to the left and to the right, but for those that do not turn.
                    let alone = 2 * frequency % width == 0;
                    let share = if alone { scale } else { 0.5 * scale };
                    let sine = if alone { 0.0 } else { -pair[1] * share };
                    spectrum[*frequency] = Complex::new(pair[0] * share, sine);
                }
                self.inverse
                    .process_with_scratch(&mut spectrum, out, &mut scratch)
                    .expect("lengths are the plan's");
                vectors(
                    #[inline(always)]
                    |_| {
                        for (out, w) in out.iter_mut().zip(w) {
                            *out += w;
                        }
                    },
                );
            }
            [out]
        });
        out
    }

    /// The gradient of C: `s·g Bᵀ`.
    pub(crate) fn gradient(&self, g: &[f32], scale: f32) -> Vec<f32> {
        let width = self.width;
        let columns = 2 * self.count();
        let mut gradient = vec![0.0; g.len() / width * columns];
        let task = task(width);
        gradient
            .par_chunks_mut(task * columns)
            .zip(g.par_chunks(task * width))
            .for_each(|(out, g)| {
                let mut row = self.forward.make_input_vec();
                let mut spectrum = self.forward.make_output_vec();
                let mut scratch = self.forward.make_scratch_vec();
                for (out, g) in out.chunks_exact_mut(columns).zip(g.chunks_exact(width)) {
                    row.copy_from_slice(g);
                    self.forward
                        .process_with_scratch(&mut row, &mut spectrum, &mut scratch)
                        .expect("lengths are the plan's");
                    for (frequency, pair) in self.frequencies.iter().zip(out.chunks_exact_mut(2)) {
                        let value = spectrum[*frequency];
                        pair[0] = value.re * scale;
                        pair[1] = -value.im * scale;
                    }
                }
            });
        gradient
    }
}

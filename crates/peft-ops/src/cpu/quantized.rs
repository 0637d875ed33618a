//! Products with a quantized matrix: a panel of its rows is decoded, used and forgotten.

use std::cell::Cell;

use rayon::prelude::*;

use super::bf16::{self, Factors, Start};
use super::matrix::{Matrix, MatrixMut};
use super::product::{Mode, multiply};
use super::right::Right;
use crate::format::QuantizedMatrix;

/// Numbers of a decoded panel: 1 MiB, which stays in the second-level cache while it is used.
const PANEL: usize = 1 << 18;
/// Numbers that one task decodes.
const TASK: usize = 1 << 14;

thread_local! {
    /// The panel, from one product to the next. One that came and went with each would leave holes of its size
    /// in the heap, between outputs that stay: a twentieth of a model's memory.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Rows of all panels but the last, which may have fewer.
pub(crate) fn panel_rows(matrix: &dyn QuantizedMatrix) -> usize {
    let [rows, columns] = matrix.shape();
    (PANEL / columns.max(1)).clamp(1, rows.max(1))
}

/// Hands `use_panel` every panel of `matrix`: its first row and its rows, dense.
pub(crate) fn panels(matrix: &dyn QuantizedMatrix, mut use_panel: impl FnMut(usize, Matrix<'_>)) {
    let [rows, columns] = matrix.shape();
    let count = panel_rows(matrix);
    let task = (TASK / columns.max(1)).max(1);
    let mut scratch = SCRATCH.take();
    if scratch.len() < count * columns {
        scratch = vec![0.0; count * columns];
    }
    for first in (0..rows).step_by(count) {
        let count = count.min(rows - first);
        let panel = &mut scratch[..count * columns];
        panel
            .par_chunks_mut((task * columns).max(1))
            .enumerate()
            .for_each(|(index, part)| matrix.decode(first + index * task, part));
        use_panel(first, Matrix::new(panel, count, columns));
    }
    SCRATCH.set(scratch);
}

/// `x Wᵀ`, `[rows, W's rows]`, for `x` of `rows` rows.
pub(crate) fn forward(x: &[f32], rows: usize, matrix: &dyn QuantizedMatrix) -> Vec<f32> {
    let [d_out, d_in] = matrix.shape();
    let x = Matrix::new(x, rows, d_in);
    let mut output = vec![0.0; rows * d_out];
    let mut into = MatrixMut::new(&mut output, rows, d_out);
    panels(matrix, |first, panel| {
        let mut block = into.column_block(first, panel.size()[0]);
        multiply(&mut block, Mode::Replace, x, panel.t(), 1.0, true);
    });
    output
}

/// The same, of sides that are rounded to bfloat16, with what a low rank adds; and `x A`, empty without factors.
pub(crate) fn forward_rounded(
    x: &[f32],
    rows: usize,
    matrix: &dyn QuantizedMatrix,
    bias: Option<&[f32]>,
    factors: Option<&Factors>,
) -> [Vec<f32>; 2] {
    let [d_out, d_in] = matrix.shape();
    let x = Matrix::new(x, rows, d_in);
    let mut through = vec![0.0; rows * factors.map_or(0, Factors::rank)];
    if let Some(factors) = factors {
        factors.through(x, &mut through, true);
    }
    let mut output = vec![0.0; rows * d_out];
    let mut into = MatrixMut::new(&mut output, rows, d_out);
    let start = bias.map_or(Start::Nothing, Start::Row);
    let added = factors.map(|factors| factors.added(&through));
    let decode = |first: usize, to: &mut [f32]| matrix.decode(first, to);
    bf16::multiply_by_rows(&mut into, start, x, [d_out, d_in], decode, added);
    [output, through]
}

/// Adds `g W` to `[rows, W's columns]`; both may be `rounded` to bfloat16.
pub(crate) fn add_backward(
    g: &[f32],
    rows: usize,
    matrix: &dyn QuantizedMatrix,
    rounded: bool,
    to: &mut [f32],
) {
    let [d_out, d_in] = matrix.shape();
    let mut to = MatrixMut::new(to, rows, d_in);
    let g = Matrix::new(g, rows, d_out);
    panels(matrix, |first, panel| {
        let columns = g.columns(first, panel.size()[0]);
        Right::new(panel, rounded).multiply(&mut to, Mode::Add, columns, 1.0, true);
    });
}

//! Cross entropy of a linear head, some rows at a time: the logits of all rows are never there at once.

use rayon::prelude::*;

use super::math::{exp_nonpositive, sum, vectors};
use super::matrix::{Matrix, MatrixMut, Mode, multiply};
use super::packed;
use crate::packed::PackedRows;

/// Logits that are there at a time: 16 MiB.
const LOGITS: usize = 1 << 22;

/// The head's matrix, one row for each class.
#[derive(Clone, Copy)]
pub(crate) enum Head<'a> {
    /// Dense, `[classes, d]`.
    Dense(Matrix<'a>),
    /// Packed.
    Packed(&'a dyn PackedRows),
}

impl Head<'_> {
    fn size(self) -> [usize; 2] {
        match self {
            Self::Dense(matrix) => matrix.size(),
            Self::Packed(matrix) => matrix.shape(),
        }
    }

    /// `x Wᵀ` into `[rows, classes]`.
    fn logits(self, x: &[f32], rows: usize, to: &mut [f32]) {
        let [classes, d] = self.size();
        let x = Matrix::new(x, rows, d);
        let mut to = MatrixMut::new(to, rows, classes);
        match self {
            Self::Dense(matrix) => multiply(&mut to, Mode::Replace, x, matrix.t(), 1.0, true),
            Self::Packed(matrix) => packed::panels(matrix, |first, panel| {
                let mut block = to.column_block(first, panel.size()[0]);
                multiply(&mut block, Mode::Replace, x, panel.t(), 1.0, true);
            }),
        }
    }

    /// `g W` into `[rows, d]`, which is zero.
    fn backward(self, g: &[f32], rows: usize, to: &mut [f32]) {
        let [classes, d] = self.size();
        match self {
            Self::Dense(matrix) => {
                let (mut to, g) = (MatrixMut::new(to, rows, d), Matrix::new(g, rows, classes));
                multiply(&mut to, Mode::Replace, g, matrix, 1.0, true);
            }
            Self::Packed(matrix) => packed::add_backward(g, rows, matrix, to),
        }
    }
}

/// What [`forward`] computes.
pub(crate) struct Loss {
    /// Negative log likelihood of every row's target, in nats; 0 where there is none.
    pub(crate) each: Vec<f32>,
    /// The gradient of their sum with respect to the hidden states, `[rows, d]`, if that is wanted.
    pub(crate) d_hidden: Option<Vec<f32>>,
    /// With respect to the head's matrix, `[classes, d]`.
    pub(crate) d_head: Option<Vec<f32>>,
}

/// Losses of `hidden` `[rows, d]` for `targets`, one for each row, negative where there is none; and their
/// gradients, `wanted` of the hidden states and of the head.
///
/// Gradients are computed at once, while the logits are there: keeping either would cost their memory, and
/// computing them twice their time.
pub(crate) fn forward(hidden: &[f32], head: Head<'_>, targets: &[i64], wanted: [bool; 2]) -> Loss {
    let [classes, d] = head.size();
    let [of_hidden, of_head] = wanted;
    let mut each = vec![0.0; targets.len()];
    let mut d_hidden = of_hidden.then(|| vec![0.0; targets.len() * d]);
    let mut d_head = of_head.then(|| vec![0.0; classes * d]);
    let chosen: Vec<usize> = (0..targets.len())
        .filter(|row| targets[*row] >= 0)
        .collect();
    if chosen.is_empty() {
        return Loss {
            each,
            d_hidden,
            d_head,
        };
    }
    let most = (LOGITS / classes.max(1)).max(1);
    // Blocks of like size.
    let block = chosen.len().div_ceil(chosen.len().div_ceil(most));
    let mut logits = vec![0.0; block * classes];
    for rows in chosen.chunks(block) {
        let x: Vec<f32> = rows
            .iter()
            .flat_map(|row| &hidden[row * d..][..d])
            .copied()
            .collect();
        let logits = &mut logits[..rows.len() * classes];
        head.logits(&x, rows.len(), logits);
        let losses: Vec<f32> = logits
            .par_chunks_exact_mut(classes)
            .zip(rows)
            .map(|(logits, row)| through_softmax(logits, targets[*row] as usize))
            .collect();
        for (row, loss) in rows.iter().zip(losses) {
            each[*row] = loss;
        }
        if let Some(d_hidden) = &mut d_hidden {
            let mut back = vec![0.0; rows.len() * d];
            head.backward(logits, rows.len(), &mut back);
            for (row, back) in rows.iter().zip(back.chunks_exact(d)) {
                d_hidden[row * d..][..d].copy_from_slice(back);
            }
        }
        if let Some(d_head) = &mut d_head {
            let (g, x) = (
                Matrix::new(logits, rows.len(), classes),
                Matrix::new(&x, rows.len(), d),
            );
            let mut to = MatrixMut::new(d_head, classes, d);
            multiply(&mut to, Mode::Add, g.t(), x, 1.0, true);
        }
    }
    Loss {
        each,
        d_hidden,
        d_head,
    }
}

/// Turns a row of logits into the gradient of its loss, which is returned.
fn through_softmax(logits: &mut [f32], target: usize) -> f32 {
    let wanted = logits[target];
    let mut loss = 0.0;
    vectors(
        #[inline(always)]
        |fma| {
            let mut largest = f32::NEG_INFINITY;
            for logit in logits.iter() {
                largest = if *logit > largest { *logit } else { largest };
            }
            for logit in logits.iter_mut() {
                *logit = exp_nonpositive(fma, *logit - largest);
            }
            let total = sum(logits);
            let factor = 1.0 / total;
            for logit in logits.iter_mut() {
                *logit *= factor;
            }
            loss = largest + total.ln() - wanted;
        },
    );
    logits[target] -= 1.0;
    loss
}

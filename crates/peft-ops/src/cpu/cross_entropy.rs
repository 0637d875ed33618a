//! Cross entropy of a linear head, of which all logits are never there at once: with a dense matrix those of some
//! rows, with a packed one those of some classes.

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
/// gradients, `wanted` of the hidden states and of the head. A packed head has none.
///
/// With a dense matrix gradients are computed at once, while the logits are there: keeping either would cost their
/// memory, and computing them twice their time. With a packed one the logits are computed twice, a panel of
/// classes at a time, as decoding the panels for one block of rows after another takes as long.
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
    let matrix = match head {
        Head::Dense(matrix) => matrix,
        Head::Packed(matrix) => {
            let most = (LOGITS / packed::panel_rows(matrix)).max(1);
            for rows in chosen.chunks(most) {
                let x = gathered(hidden, rows, d);
                let (losses, back) = by_classes(&x, matrix, rows, targets, of_hidden);
                for (row, loss) in rows.iter().zip(losses) {
                    each[*row] = loss;
                }
                if let Some(d_hidden) = &mut d_hidden {
                    scatter(&back, rows, d_hidden, d);
                }
            }
            return Loss {
                each,
                d_hidden,
                d_head: None,
            };
        }
    };
    let most = (LOGITS / classes.max(1)).max(1);
    // Blocks of like size.
    let block = chosen.len().div_ceil(chosen.len().div_ceil(most));
    let mut logits = vec![0.0; block * classes];
    for rows in chosen.chunks(block) {
        let x = gathered(hidden, rows, d);
        let logits = &mut logits[..rows.len() * classes];
        let mut to = MatrixMut::new(logits, rows.len(), classes);
        let x = Matrix::new(&x, rows.len(), d);
        multiply(&mut to, Mode::Replace, x, matrix.t(), 1.0, true);
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
            let mut to = MatrixMut::new(&mut back, rows.len(), d);
            let g = Matrix::new(logits, rows.len(), classes);
            multiply(&mut to, Mode::Replace, g, matrix, 1.0, true);
            scatter(&back, rows, d_hidden, d);
        }
        if let Some(d_head) = &mut d_head {
            let g = Matrix::new(logits, rows.len(), classes);
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

/// Some rows of `[.., d]`.
fn gathered(from: &[f32], rows: &[usize], d: usize) -> Vec<f32> {
    rows.iter()
        .flat_map(|row| &from[row * d..][..d])
        .copied()
        .collect()
}

/// Puts what [`gathered`] took back.
fn scatter(values: &[f32], rows: &[usize], to: &mut [f32], d: usize) {
    for (row, values) in rows.iter().zip(values.chunks_exact(d)) {
        to[row * d..][..d].copy_from_slice(values);
    }
}

/// What is known of a row after some of its logits.
#[derive(Clone, Copy)]
struct Row {
    /// The class that is right.
    target: usize,
    /// That class's logit.
    wanted: f32,
    /// The largest logit.
    largest: f32,
    /// Sum of all exponentials, over that of the largest.
    total: f32,
}

impl Row {
    /// Takes in the logits of the classes from `first` on, of which little is left.
    fn see(&mut self, first: usize, logits: &mut [f32]) {
        if let Some(at) = self.target.checked_sub(first) {
            self.wanted = logits.get(at).copied().unwrap_or(self.wanted);
        }
        vectors(
            #[inline(always)]
            |fma| {
                let mut largest = self.largest;
                for logit in logits.iter() {
                    largest = if *logit > largest { *logit } else { largest };
                }
                for logit in logits.iter_mut() {
                    *logit = exp_nonpositive(fma, *logit - largest);
                }
                if self.total > 0.0 {
                    self.total *= exp_nonpositive(fma, self.largest - largest);
                }
                self.total += sum(logits);
                self.largest = largest;
            },
        );
    }

    fn loss(&self) -> f32 {
        self.largest + self.total.ln() - self.wanted
    }

    /// Turns the logits of the classes from `first` on into the gradient of the loss, once all have been seen.
    fn gradient(&self, first: usize, logits: &mut [f32]) {
        let (largest, factor) = (self.largest, 1.0 / self.total);
        vectors(
            #[inline(always)]
            |fma| {
                for logit in logits.iter_mut() {
                    *logit = exp_nonpositive(fma, *logit - largest) * factor;
                }
            },
        );
        let at = self.target.checked_sub(first);
        if let Some(logit) = at.and_then(|at| logits.get_mut(at)) {
            *logit -= 1.0;
        }
    }
}

/// Losses of `x`, whose rows have the targets of `rows`, and the gradient of their sum if it is wanted.
fn by_classes(
    x: &[f32],
    head: &dyn PackedRows,
    rows: &[usize],
    targets: &[i64],
    wanted: bool,
) -> (Vec<f32>, Vec<f32>) {
    let [_, d] = head.shape();
    let count = rows.len();
    let mut states: Vec<Row> = rows
        .iter()
        .map(|row| Row {
            target: targets[*row] as usize,
            wanted: 0.0,
            largest: f32::NEG_INFINITY,
            total: 0.0,
        })
        .collect();
    let matrix = Matrix::new(x, count, d);
    let mut logits = vec![0.0; count * packed::panel_rows(head)];
    packed::panels(head, |first, panel| {
        let classes = panel.size()[0];
        let logits = &mut logits[..count * classes];
        let mut to = MatrixMut::new(logits, count, classes);
        multiply(&mut to, Mode::Replace, matrix, panel.t(), 1.0, true);
        logits
            .par_chunks_exact_mut(classes)
            .zip(&mut states)
            .for_each(|(logits, state)| state.see(first, logits));
    });
    let losses = states.iter().map(Row::loss).collect();
    if !wanted {
        return (losses, Vec::new());
    }
    let mut back = vec![0.0; count * d];
    packed::panels(head, |first, panel| {
        let classes = panel.size()[0];
        let logits = &mut logits[..count * classes];
        let mut to = MatrixMut::new(logits, count, classes);
        multiply(&mut to, Mode::Replace, matrix, panel.t(), 1.0, true);
        logits
            .par_chunks_exact_mut(classes)
            .zip(&states)
            .for_each(|(logits, state)| state.gradient(first, logits));
        let mut to = MatrixMut::new(&mut back, count, d);
        let g = Matrix::new(logits, count, classes);
        multiply(&mut to, Mode::Add, g, panel, 1.0, true);
    });
    (losses, back)
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

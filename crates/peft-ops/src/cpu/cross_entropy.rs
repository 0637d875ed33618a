//! Cross entropy of a linear head, of which all logits are never there at once: with a dense matrix those of some
//! rows, with a quantized one those of some classes.

use rayon::prelude::*;

use super::math::{exp_nonpositive, sum, vectors};
use super::matrix::{Matrix, MatrixMut};
use super::product::{Mode, multiply};
use super::quantized;
use super::right::Right;
use crate::format::QuantizedMatrix;

/// Logits that are there at a time: 16 MiB.
const LOGITS: usize = 1 << 22;

/// The head's matrix, one row for each class.
#[derive(Clone, Copy)]
pub(crate) enum Head<'a> {
    /// Dense, `[classes, d]`.
    Dense(Right<'a>),
    /// Quantized; its rows may be rounded for products.
    Quantized(&'a dyn QuantizedMatrix, bool),
}

impl Head<'_> {
    fn size(self) -> [usize; 2] {
        match self {
            Self::Dense(matrix) => matrix.size(),
            Self::Quantized(matrix, _) => matrix.shape(),
        }
    }
}

/// What is added to the logits: `through · up`.
#[derive(Clone, Copy)]
pub(crate) struct Added<'a> {
    /// `[rows, r]`.
    pub(crate) through: &'a [f32],
    /// `[r, classes]`.
    pub(crate) up: Matrix<'a>,
}

/// What some rows add to the logits, and where its gradients go.
struct Through<'a> {
    /// Of these rows, `[count, r]`.
    values: Vec<f32>,
    up: Matrix<'a>,
    /// Of these rows' gradient, empty if it is not wanted.
    back: Vec<f32>,
}

impl<'a> Through<'a> {
    fn new(added: Added<'a>, rows: &[usize], wanted: bool) -> Self {
        let [rank, _] = added.up.size();
        Self {
            values: gathered(added.through, rows, rank),
            up: added.up,
            back: vec![0.0; if wanted { rows.len() * rank } else { 0 }],
        }
    }

    fn rank(&self) -> usize {
        self.up.size()[0]
    }

    /// Adds to the logits of the classes from `first` on.
    fn add(&self, first: usize, to: &mut MatrixMut<'_>, [count, classes]: [usize; 2]) {
        let values = Matrix::new(&self.values, count, self.rank());
        let up = self.up.columns(first, classes);
        multiply(to, Mode::Add, values, up, 1.0, true);
    }

    /// Takes in the gradient of those logits.
    fn take(&mut self, first: usize, g: Matrix<'_>, d_up: Option<&mut Vec<f32>>) {
        let ([count, classes], [rank, all]) = (g.size(), self.up.size());
        if !self.back.is_empty() {
            let mut to = MatrixMut::new(&mut self.back, count, rank);
            let up = self.up.columns(first, classes);
            multiply(&mut to, Mode::Add, g, up.t(), 1.0, true);
        }
        if let Some(d_up) = d_up {
            let values = Matrix::new(&self.values, count, rank);
            let mut whole = MatrixMut::new(d_up, rank, all);
            let mut to = whole.column_block(first, classes);
            multiply(&mut to, Mode::Add, values.t(), g, 1.0, true);
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
    /// With respect to what is added to the logits: `[rows, r]`.
    pub(crate) d_through: Option<Vec<f32>>,
    /// `[r, classes]`.
    pub(crate) d_up: Option<Vec<f32>>,
}

/// Losses of `hidden` `[rows, d]` for `targets`, one for each row, negative where there is none, with what is `added`
/// to the logits; and the gradients that are `wanted`, in the order of [`Loss`]. A quantized head has none.
///
/// With a dense matrix gradients are computed at once, while the logits are there: keeping either would cost their
/// memory, and computing them twice their time. With a quantized one the logits are computed twice, a panel of
/// classes at a time, as decoding the panels for one block of rows after another takes as long.
pub(crate) fn forward(
    hidden: &[f32],
    head: Head<'_>,
    added: Option<Added<'_>>,
    targets: &[i64],
    wanted: [bool; 4],
) -> Loss {
    let [classes, d] = head.size();
    let rank = added.map_or(0, |added| added.up.size()[0]);
    let rows = targets.len();
    let [of_hidden, of_head, of_through, of_up] = wanted;
    let zeros = |wanted: bool, count: usize| wanted.then(|| vec![0.0; count]);
    let mut loss = Loss {
        each: vec![0.0; rows],
        d_hidden: zeros(of_hidden, rows * d),
        d_head: zeros(of_head, classes * d),
        d_through: zeros(of_through, rows * rank),
        d_up: zeros(of_up, rank * classes),
    };
    let chosen: Vec<usize> = (0..rows).filter(|row| targets[*row] >= 0).collect();
    if chosen.is_empty() {
        return loss;
    }
    match head {
        Head::Dense(matrix) => {
            let most = (LOGITS / classes.max(1)).max(1);
            // Blocks of like size.
            let block = chosen.len().div_ceil(chosen.len().div_ceil(most));
            let mut logits = vec![0.0; block * classes];
            for rows in chosen.chunks(block) {
                let logits = &mut logits[..rows.len() * classes];
                let x = gathered(hidden, rows, d);
                let through = added.map(|added| Through::new(added, rows, of_through));
                by_rows(&x, matrix, through, rows, targets, logits, &mut loss);
            }
        }
        Head::Quantized(matrix, rounded) => {
            let most = (LOGITS / quantized::panel_rows(matrix)).max(1);
            for rows in chosen.chunks(most) {
                let x = gathered(hidden, rows, d);
                let through = added.map(|added| Through::new(added, rows, of_through));
                by_classes(&x, (matrix, rounded), through, rows, targets, &mut loss);
            }
            loss.d_head = None;
        }
    }
    loss
}

/// Puts losses and gradients of `x`, whose rows have the targets of `rows`, into `loss`; `logits` is a buffer.
fn by_rows(
    x: &[f32],
    matrix: Right<'_>,
    mut through: Option<Through<'_>>,
    rows: &[usize],
    targets: &[i64],
    logits: &mut [f32],
    loss: &mut Loss,
) {
    let ([classes, d], count) = (matrix.size(), rows.len());
    let x = Matrix::new(x, count, d);
    let mut to = MatrixMut::new(logits, count, classes);
    matrix.t().multiply(&mut to, Mode::Replace, x, 1.0, true);
    if let Some(through) = &through {
        through.add(0, &mut to, [count, classes]);
    }
    let losses: Vec<f32> = logits
        .par_chunks_exact_mut(classes)
        .zip(rows)
        .map(|(logits, row)| through_softmax(logits, targets[*row] as usize))
        .collect();
    for (row, one) in rows.iter().zip(losses) {
        loss.each[*row] = one;
    }
    let g = Matrix::new(logits, count, classes);
    if let Some(d_hidden) = &mut loss.d_hidden {
        let mut back = vec![0.0; count * d];
        let mut to = MatrixMut::new(&mut back, count, d);
        matrix.multiply(&mut to, Mode::Replace, g, 1.0, true);
        scatter(&back, rows, d_hidden, d);
    }
    if let Some(d_head) = &mut loss.d_head {
        let mut to = MatrixMut::new(d_head, classes, d);
        multiply(&mut to, Mode::Add, g.t(), x, 1.0, true);
    }
    if let Some(through) = &mut through {
        through.take(0, g, loss.d_up.as_mut());
        if let Some(d_through) = &mut loss.d_through {
            scatter(&through.back, rows, d_through, through.rank());
        }
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

/// Puts losses and gradients of `x`, whose rows have the targets of `rows`, into `loss`.
fn by_classes(
    x: &[f32],
    (head, rounded): (&dyn QuantizedMatrix, bool),
    mut through: Option<Through<'_>>,
    rows: &[usize],
    targets: &[i64],
    loss: &mut Loss,
) {
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
    let mut logits = vec![0.0; count * quantized::panel_rows(head)];
    let logits_of =
        |first, panel: Matrix<'_>, through: Option<&Through<'_>>, logits: &mut [f32]| {
            let classes = panel.size()[0];
            let mut to = MatrixMut::new(logits, count, classes);
            let right = Right::new(panel.t(), rounded);
            right.multiply(&mut to, Mode::Replace, matrix, 1.0, true);
            if let Some(through) = through {
                through.add(first, &mut to, [count, classes]);
            }
        };
    quantized::panels(head, |first, panel| {
        let classes = panel.size()[0];
        let logits = &mut logits[..count * classes];
        logits_of(first, panel, through.as_ref(), logits);
        logits
            .par_chunks_exact_mut(classes)
            .zip(&mut states)
            .for_each(|(logits, state)| state.see(first, logits));
    });
    for (row, state) in rows.iter().zip(&states) {
        loss.each[*row] = state.loss();
    }
    if [&loss.d_hidden, &loss.d_through, &loss.d_up]
        .iter()
        .all(|gradient| gradient.is_none())
    {
        return;
    }
    let mut back = vec![0.0; count * d];
    quantized::panels(head, |first, panel| {
        let classes = panel.size()[0];
        let logits = &mut logits[..count * classes];
        logits_of(first, panel, through.as_ref(), logits);
        logits
            .par_chunks_exact_mut(classes)
            .zip(&states)
            .for_each(|(logits, state)| state.gradient(first, logits));
        let g = Matrix::new(logits, count, classes);
        if loss.d_hidden.is_some() {
            let mut to = MatrixMut::new(&mut back, count, d);
            Right::new(panel, rounded).multiply(&mut to, Mode::Add, g, 1.0, true);
        }
        if let Some(through) = &mut through {
            through.take(first, g, loss.d_up.as_mut());
        }
    });
    if let Some(d_hidden) = &mut loss.d_hidden {
        scatter(&back, rows, d_hidden, d);
    }
    if let (Some(through), Some(d_through)) = (&through, &mut loss.d_through) {
        scatter(&through.back, rows, d_through, through.rank());
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

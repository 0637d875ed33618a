//! Householder bidiagonalization, as LAPACK does it.

use super::divide::{Part, solve};
use super::iterate::rotation;

/// `x − tau·(v·x)·v`, of the elements from `from` on.
struct Reflector {
    from: usize,
    vector: Vec<f64>,
    tau: f64,
}

impl Reflector {
    /// The one that leaves of `elements` the first alone, and what it leaves there: of the other sign.
    fn of(from: usize, elements: &[f64]) -> (Self, f64) {
        let mut vector = elements.to_vec();
        let rest: f64 = elements[1..].iter().map(|value| value * value).sum();
        if rest == 0.0 {
            let first = std::mem::replace(&mut vector[0], 1.0);
            let none = Self {
                from,
                vector,
                tau: 0.0,
            };
            return (none, first);
        }
        let first = elements[0];
        let left = -first.hypot(rest.sqrt()).copysign(first);
        for value in &mut vector[1..] {
            *value /= first - left;
        }
        vector[0] = 1.0;
        let tau = (left - first) / left;
        (Self { from, vector, tau }, left)
    }

    fn apply(&self, column: &mut [f64]) {
        let part = &mut column[self.from..];
        let along: f64 = part.iter().zip(&self.vector).map(|(a, b)| a * b).sum();
        for (value, of) in part.iter_mut().zip(&self.vector) {
            *value -= self.tau * along * of;
        }
    }

    /// From the right: to the columns from `from` on, of the rows from `row` on.
    fn apply_to_rows(&self, columns: &mut [Vec<f64>], row: usize) {
        let columns = &mut columns[self.from..];
        let mut along = vec![0.0; columns.first().map_or(0, |column| column.len() - row)];
        for (column, of) in columns.iter().zip(&self.vector) {
            for (sum, value) in along.iter_mut().zip(&column[row..]) {
                *sum += of * value;
            }
        }
        for (column, of) in columns.iter_mut().zip(&self.vector) {
            for (value, sum) in column[row..].iter_mut().zip(&along) {
                *value -= self.tau * of * sum;
            }
        }
    }
}

/// A matrix as a product of reflections, a matrix with two diagonals, and reflections.
pub(super) struct Bidiagonal {
    /// Those from the left, in the order in which they were applied.
    left: Vec<Reflector>,
    diagonal: Vec<f64>,
    beside: Vec<f64>,
    /// Whether the second diagonal is above the first.
    upper: bool,
    rows: usize,
}

impl Bidiagonal {
    /// Of a matrix by columns. `None` of one without elements.
    pub(super) fn of(mut columns: Vec<Vec<f64>>, [rows, width]: [usize; 2]) -> Option<Self> {
        if rows == 0 || width == 0 {
            return None;
        }
        let mut found = Self {
            left: Vec::new(),
            diagonal: Vec::new(),
            beside: Vec::new(),
            upper: rows >= width,
            rows,
        };
        // MKL takes a triangular factor first where there are half as many rows again as columns.
        if 2 * rows >= 3 * width {
            for at in 0..width {
                found.reflect_column(&mut columns, at, at);
            }
            for (at, column) in columns.iter_mut().enumerate() {
                column[at + 1..].fill(0.0);
                column.truncate(width);
            }
        }
        let rows = columns[0].len();
        for at in 0..rows.min(width) {
            if found.upper {
                let first = found.reflect_column(&mut columns, at, at);
                found.diagonal.push(first);
                if at + 1 < width {
                    found.beside.push(reflect_row(&mut columns, at, at + 1));
                }
            } else {
                found.diagonal.push(reflect_row(&mut columns, at, at));
                if at + 1 < rows {
                    let first = found.reflect_column(&mut columns, at, at + 1);
                    found.beside.push(first);
                }
            }
        }
        Some(found)
    }

    /// Leaves of a column's elements from `from` on the first alone, and returns it.
    fn reflect_column(&mut self, columns: &mut [Vec<f64>], at: usize, from: usize) -> f64 {
        let (reflector, left) = Reflector::of(from, &columns[at][from..]);
        columns[at][from] = left;
        for column in &mut columns[at + 1..] {
            reflector.apply(column);
        }
        self.left.push(reflector);
        left
    }

    /// Left singular vectors of the matrix, by falling singular values. `None` where they are not found.
    pub(super) fn left_vectors(mut self) -> Option<Vec<Vec<f64>>> {
        let mut turned = Vec::new();
        if !self.upper {
            for at in 0..self.beside.len() {
                let (d, e) = (self.diagonal[at] as f32, self.beside[at] as f32);
                let (cosine, sine, left) = rotation(d, e);
                let (cosine, sine) = (f64::from(cosine), f64::from(sine));
                let next = self.diagonal[at + 1];
                self.diagonal[at] = f64::from(left);
                self.beside[at] = sine * next;
                self.diagonal[at + 1] = cosine * next;
                turned.push((at, cosine, sine));
            }
        }
        let Part { mut left, .. } = solve(&self.diagonal, &self.beside, false)?;
        for vector in &mut left {
            for (at, cosine, sine) in turned.iter().rev() {
                let (above, below) = (vector[*at], vector[at + 1]);
                vector[*at] = cosine * above - sine * below;
                vector[at + 1] = cosine * below + sine * above;
            }
            vector.resize(self.rows, 0.0);
            for reflector in self.left.iter().rev() {
                reflector.apply(vector);
            }
        }
        Some(left)
    }
}

/// Leaves of a row's elements from `from` on the first alone, and returns it.
fn reflect_row(columns: &mut [Vec<f64>], row: usize, from: usize) -> f64 {
    let elements: Vec<f64> = columns[from..].iter().map(|column| column[row]).collect();
    let (reflector, left) = Reflector::of(from, &elements);
    reflector.apply_to_rows(columns, row + 1);
    left
}

//! Small matrices in f64, to compute again what the library finds by faer.

use burn::tensor::{Device, Tensor, TensorData};

#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    pub(crate) fn of(tensor: &Tensor<2>) -> Self {
        let [rows, columns] = tensor.dims();
        Self {
            rows,
            columns,
            values: tensor.to_data().iter().collect(),
        }
    }

    pub(crate) fn new(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let at = |at: usize| value(at / columns, at % columns);
        Self {
            rows,
            columns,
            values: (0..rows * columns).map(at).collect(),
        }
    }

    pub(crate) fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.columns + column]
    }

    pub(crate) fn transposed(&self) -> Self {
        Self::new(self.columns, self.rows, |row, column| self.at(column, row))
    }

    pub(crate) fn times(&self, other: &Self) -> Self {
        assert_eq!(self.columns, other.rows);
        Self::new(self.rows, other.columns, |row, column| {
            (0..self.columns)
                .map(|k| self.at(row, k) * other.at(k, column))
                .sum()
        })
    }

    pub(crate) fn plus(&self, other: &Self, factor: f64) -> Self {
        Self::new(self.rows, self.columns, |row, column| {
            self.at(row, column) + factor * other.at(row, column)
        })
    }

    pub(crate) fn on(&self, device: &Device) -> Tensor<2> {
        let values: Vec<f32> = self.values.iter().map(|value| *value as f32).collect();
        Tensor::from_data(TensorData::new(values, [self.rows, self.columns]), device)
    }

    /// Eigenvalues of a symmetric matrix, from large to small, and their vectors as columns: Jacobi's rotations.
    pub(crate) fn eigen(&self) -> (Vec<f64>, Self) {
        let size = self.rows;
        let mut matrix = self.clone();
        let mut vectors = Self::new(size, size, |row, column| f64::from(u8::from(row == column)));
        for _ in 0..60 {
            for p in 0..size {
                for q in p + 1..size {
                    let off = matrix.at(p, q);
                    if off.abs() < 1e-300 {
                        continue;
                    }
                    let angle = 0.5 * (2.0 * off).atan2(matrix.at(p, p) - matrix.at(q, q));
                    let (sin, cos) = angle.sin_cos();
                    let rotation = Self::new(size, size, |row, column| match (row, column) {
                        _ if (row == p && column == p) || (row == q && column == q) => cos,
                        _ if row == p && column == q => -sin,
                        _ if row == q && column == p => sin,
                        _ => f64::from(u8::from(row == column)),
                    });
                    matrix = rotation.transposed().times(&matrix).times(&rotation);
                    vectors = vectors.times(&rotation);
                }
            }
        }
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|a, b| matrix.at(*b, *b).total_cmp(&matrix.at(*a, *a)));
        let sorted = Self::new(size, size, |row, column| vectors.at(row, order[column]));
        (order.iter().map(|at| matrix.at(*at, *at)).collect(), sorted)
    }

    /// One column.
    pub(crate) fn column(&self, at: usize) -> Self {
        Self::new(self.rows, 1, |row, _| self.at(row, at))
    }
}

#[test]
fn eigenvectors_give_the_matrix_back() {
    let any = Matrix::new(5, 5, |row, column| ((row * 7 + column * 3) as f64).sin());
    let symmetric = any.times(&any.transposed());
    let (values, vectors) = symmetric.eigen();
    assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
    let scaled = Matrix::new(5, 5, |row, column| vectors.at(row, column) * values[column]);
    let again = scaled.times(&vectors.transposed());
    for at in 0..25 {
        assert!((again.values[at] - symmetric.values[at]).abs() < 1e-9);
    }
}

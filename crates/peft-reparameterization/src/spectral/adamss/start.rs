//! What AdaMSS computes of a layer's weight: its singular vectors, and the groups of its outputs.

use faer::Mat;

use crate::math::kmeans::k_means;
use crate::math::torch_random::TorchGenerator;

/// Upstream's seed and number of steps of k-means.
const SEED: u32 = 123_456_789;
const STEPS: usize = 10;

/// Steps of subspace iteration, of upstream's `torch.svd_lowrank`.
const ITERATIONS: usize = 2;

/// A weight's singular vectors and the groups of its outputs, as upstream computes them.
pub(super) struct Decomposition {
    /// About the largest right singular vectors, `[inputs, r]`.
    pub(super) inputs: Mat<f64>,
    /// The left ones, `[outputs, r]`.
    outputs: Mat<f64>,
    /// The outputs of each group. None is in two, and all are in one.
    pub(super) groups: Vec<Vec<usize>>,
}

impl Decomposition {
    /// Of `matrix` `[outputs, inputs]`; `None` where it is not finite.
    ///
    /// A file does not say which output is in which group, so all that this depends on is done as upstream does it: the
    /// iteration from torch's random numbers of the seed, and k-means from NumPy's. Signs of singular vectors are no part
    /// of that: distances do not depend on them.
    pub(super) fn of(matrix: &Mat<f64>, (r, groups, seed): (usize, usize, i64)) -> Option<Self> {
        if !matrix.is_all_finite() {
            return None;
        }
        let wide = matrix.nrows() < matrix.ncols();
        let (long, short) = if wide {
            largest(matrix.transpose().to_owned(), r, seed)?
        } else {
            largest(matrix.clone(), r, seed)?
        };
        let (outputs, inputs) = if wide { (short, long) } else { (long, short) };
        let count = groups.min(outputs.nrows());
        let labels = k_means(&outputs, count, STEPS, SEED);
        let members = |group: usize| -> Vec<usize> {
            let members = labels.iter().enumerate();
            let members = members.filter(|(_, label)| **label == group);
            members.map(|(output, _)| output).collect()
        };
        let groups = (0..count).map(members).collect();
        Some(Self {
            inputs,
            outputs,
            groups,
        })
    }

    /// Singular values of a group's rows of the left vectors, from large to small, and their right vectors,
    /// `[r, values]`.
    fn within(&self, group: usize) -> Option<(Vec<f64>, Mat<f64>)> {
        let members = &self.groups[group];
        let rows = Mat::from_fn(members.len(), self.outputs.ncols(), |row, column| {
            self.outputs[(members[row], column)]
        });
        let svd = rows.thin_svd().ok()?;
        let values = svd.S().column_vector().iter().copied().collect();
        Some((values, svd.V().to_owned()))
    }

    /// How many directions of a group are worth it, at most `most`: those whose eigenvalue in the group's Gram matrix is
    /// above this share of the largest.
    pub(super) fn rank(&self, group: usize, most: usize, threshold: f64) -> Option<usize> {
        let (values, _) = self.within(group)?;
        let squares: Vec<f64> = values.iter().map(|value| value * value).collect();
        let bound = threshold * squares.first()?;
        let above = squares.iter().filter(|square| **square > bound).count();
        Some(above.clamp(1, most))
    }

    /// The first `rank` directions of a group, `[r, rank]`, orthonormal.
    pub(super) fn directions(&self, group: usize, rank: usize) -> Option<Mat<f64>> {
        let (_, vectors) = self.within(group)?;
        Some(vectors.get(.., ..rank).to_owned())
    }
}

/// About the largest `r` singular vectors of a tall matrix, on the left `[rows, r]` and on the right `[columns, r]`: Halko,
/// Martinsson and Tropp 2011, algorithm 4.4.
fn largest(matrix: Mat<f64>, r: usize, seed: i64) -> Option<(Mat<f64>, Mat<f64>)> {
    let columns = matrix.ncols();
    let mut generator = TorchGenerator::new(seed.cast_unsigned());
    let start = generator.normal(columns * r, 1.0);
    let start = Mat::from_fn(columns, r, |row, column| f64::from(start[row * r + column]));
    let basis_of = |matrix: Mat<f64>| matrix.qr().compute_thin_Q();
    let mut basis = basis_of(&matrix * start);
    for _ in 0..ITERATIONS {
        let other = basis_of(matrix.transpose() * basis);
        basis = basis_of(&matrix * other);
    }
    let svd = (basis.transpose() * &matrix).thin_svd().ok()?;
    Some((basis * svd.U(), svd.V().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(outputs: usize, inputs: usize) -> Mat<f64> {
        Mat::from_fn(outputs, inputs, |row, column| {
            let at = (row * inputs + column) as f64;
            (at * 0.7).sin() + (at * at * 0.013).cos()
        })
    }

    #[test]
    fn every_output_is_in_one_group() {
        for (outputs, inputs) in [(12, 7), (7, 12)] {
            let found = Decomposition::of(&matrix(outputs, inputs), (5, 3, 0)).unwrap();
            let mut all: Vec<usize> = found.groups.concat();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..outputs));
            assert_eq!((found.inputs.nrows(), found.inputs.ncols()), (inputs, 5));
            let product = found.inputs.transpose() * &found.inputs;
            let one = Mat::<f64>::identity(5, 5);
            assert!((product - one).norm_max() < 1e-12);
        }
    }

    #[test]
    fn directions_are_those_of_the_largest_part_of_a_group() {
        let found = Decomposition::of(&matrix(12, 7), (5, 2, 0)).unwrap();
        for group in 0..2 {
            let direction = found.directions(group, 1).unwrap();
            let along = |direction: &Mat<f64>| -> f64 {
                let of = |output: &usize| -> f64 {
                    let products =
                        (0..5).map(|at| found.outputs[(*output, at)] * direction[(at, 0)]);
                    products.sum::<f64>().powi(2)
                };
                found.groups[group].iter().map(of).sum()
            };
            let best = along(&direction);
            for at in 0..5 {
                let other = Mat::from_fn(5, 1, |row, _| f64::from(u8::from(row == at)));
                assert!(along(&other) <= best + 1e-12, "{at}");
            }
            assert_eq!(found.rank(group, 4, 1.0), Some(1));
            assert_eq!(found.rank(group, 2, 0.0), Some(2));
        }
    }

    #[test]
    fn what_is_not_finite_has_no_groups() {
        let mut spoiled = matrix(4, 3);
        spoiled[(1, 1)] = f64::NAN;
        assert!(Decomposition::of(&spoiled, (2, 2, 0)).is_none());
    }
}

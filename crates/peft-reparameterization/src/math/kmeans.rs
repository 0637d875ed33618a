//! k-means as scikit-learn's `KMeans(init="random", n_init=1)` has it (1.9): for methods whose files do not say which group
//! each row is in, as it can be found out again.
//!
//! Distances are computed in `f64`, there in `f32`. A row that is as near to two centers as rounding can tell may so come
//! into another group.

use faer::Mat;

use crate::math::torch_random::TorchGenerator;

/// Where centers move by less than this share of the rows' variance, the rows stay where they are.
const TOLERANCE: f64 = 1e-4;

/// `numpy.random.RandomState(seed)`: the same Mersenne Twister as torch's.
struct RandomState(TorchGenerator);

impl RandomState {
    fn new(seed: u32) -> Self {
        Self(TorchGenerator::new(u64::from(seed)))
    }

    /// Uniform in [0, 1), with 53 bits.
    fn random_sample(&mut self) -> f64 {
        let (high, low) = (self.0.random_u32() >> 5, self.0.random_u32() >> 6);
        (f64::from(high) * f64::from(1 << 26) + f64::from(low)) / (1_u64 << 53) as f64
    }

    /// `choice(below, size=count, replace=False, p=…)` where all have the same probability, given in `f32`.
    fn choice(&mut self, below: usize, count: usize) -> Vec<usize> {
        let mut probabilities = vec![f64::from(1.0 / below as f32); below];
        let mut found: Vec<usize> = Vec::with_capacity(count);
        while found.len() < count {
            let drawn: Vec<f64> = (found.len()..count).map(|_| self.random_sample()).collect();
            for &chosen in &found {
                probabilities[chosen] = 0.0;
            }
            let mut sum = 0.0;
            let sums: Vec<f64> = probabilities
                .iter()
                .map(|probability| {
                    sum += probability;
                    sum
                })
                .collect();
            let before = found.len();
            for drawn in drawn {
                let entry = sums.partition_point(|upto| upto / sum <= drawn);
                // What is drawn twice counts once.
                if !found[before..].contains(&entry) {
                    found.push(entry);
                }
            }
        }
        found
    }
}

/// The squared distance of two rows.
fn squared(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Groups of rows around their centers.
struct Groups {
    rows: Vec<Vec<f64>>,
    centers: Vec<Vec<f64>>,
    /// Of each row.
    labels: Vec<usize>,
}

impl Groups {
    /// Puts each row to the nearest center, of equal ones the first.
    fn assign(&mut self) {
        for (row, label) in self.rows.iter().zip(&mut self.labels) {
            let distances = self.centers.iter().map(|center| squared(row, center));
            let nearest = distances.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
            *label = nearest.map_or(0, |(center, _)| center);
        }
    }

    /// Puts each center into the middle of its rows, and says how far all went: the sum of the squared ways.
    fn update(&mut self) -> f64 {
        let width = self.rows.first().map_or(0, Vec::len);
        let mut sums = vec![vec![0.0; width]; self.centers.len()];
        let mut counts = vec![0_usize; self.centers.len()];
        for (row, &label) in self.rows.iter().zip(&self.labels) {
            sums[label]
                .iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += x);
            counts[label] += 1;
        }
        self.fill_empty(&mut sums, &mut counts);
        let largest = (0..counts.len())
            .rev()
            .max_by_key(|&group| counts[group])
            .unwrap_or_default();
        let middle = |group: usize| -> Vec<f64> {
            // A group without rows has its center in the largest one.
            let from = if counts[group] == 0 { largest } else { group };
            let count = counts[from].max(1) as f64;
            sums[from].iter().map(|sum| sum / count).collect()
        };
        let centers: Vec<Vec<f64>> = (0..counts.len()).map(middle).collect();
        let ways = centers.iter().zip(&self.centers);
        let moved = ways.map(|(new, old)| squared(new, old)).sum();
        self.centers = centers;
        moved
    }

    /// Gives groups without rows the rows that are farthest from their centers.
    fn fill_empty(&self, sums: &mut [Vec<f64>], counts: &mut [usize]) {
        let empty: Vec<usize> = (0..counts.len()).filter(|&at| counts[at] == 0).collect();
        if empty.is_empty() {
            return;
        }
        let way = |at: usize| squared(&self.rows[at], &self.centers[self.labels[at]]);
        let mut far: Vec<(usize, f64)> = (0..self.rows.len()).map(|at| (at, way(at))).collect();
        far.sort_by(|a, b| b.1.total_cmp(&a.1));
        if far.first().is_none_or(|(_, way)| *way == 0.0) {
            return;
        }
        for (group, (row, _)) in empty.into_iter().zip(far) {
            let old = self.labels[row];
            let values = &self.rows[row];
            sums[old]
                .iter_mut()
                .zip(values)
                .for_each(|(sum, x)| *sum -= x);
            sums[group].clone_from(values);
            counts[group] = 1;
            counts[old] -= 1;
        }
    }
}

/// The group of each row, of `count` groups, after at most `iterations` steps.
///
/// There must not be more groups than rows. A group may be left without rows, where rows are equal.
pub(crate) fn k_means(rows: &Mat<f64>, count: usize, iterations: usize, seed: u32) -> Vec<usize> {
    let (height, width) = (rows.nrows(), rows.ncols());
    let mut variance = 0.0;
    let mut centered = vec![vec![0.0; width]; height];
    for column in 0..width {
        let mean = (0..height).map(|row| rows[(row, column)]).sum::<f64>() / height as f64;
        for (row, values) in centered.iter_mut().enumerate() {
            let value = rows[(row, column)] - mean;
            values[column] = value;
            variance += value * value;
        }
    }
    let tolerance = TOLERANCE * variance / (height * width).max(1) as f64;
    let chosen = RandomState::new(seed).choice(height, count);
    let mut groups = Groups {
        centers: chosen.iter().map(|&row| centered[row].clone()).collect(),
        labels: vec![0; height],
        rows: centered,
    };
    let mut before: Option<Vec<usize>> = None;
    for _ in 0..iterations {
        groups.assign();
        let moved = groups.update();
        if before.as_ref() == Some(&groups.labels) {
            return groups.labels;
        }
        if moved <= tolerance {
            break;
        }
        before = Some(groups.labels.clone());
    }
    groups.assign();
    groups.labels
}

#[cfg(test)]
mod tests {
    use super::*;

    /// numpy.random.RandomState(123456789).choice(n, size=k, replace=False, p=numpy.ones(n, numpy.float32) / n), and the
    /// next random_sample()
    #[test]
    fn choices_are_numpys() {
        for (below, expected, next) in [
            (10, vec![5, 7, 2], 0.752_693_608_872_111_1),
            (32, vec![17, 16, 22, 8, 25], 0.883_879_183_689_543_7),
            // Some are drawn twice.
            (7, vec![3, 4, 1, 5, 6, 0, 2], 0.643_445_158_589_871_6),
        ] {
            let mut state = RandomState::new(123_456_789);
            assert_eq!(state.choice(below, expected.len()), expected);
            assert!((state.random_sample() - next).abs() < 1e-15);
        }
    }

    /// KMeans(n_clusters=k, init="random", n_init=1, max_iter=10, random_state=123456789).fit_predict(rows)
    #[test]
    fn groups_are_scikit_learns() {
        let rows = |height: usize, width: usize| {
            Mat::from_fn(height, width, |row, column| {
                let at = (row * width + column) as f64;
                f64::from(((at * 0.7).sin() + (at * at * 0.013).cos()) as f32)
            })
        };
        let cases: [(usize, usize, usize, &[usize]); 4] = [
            (12, 3, 3, &[0, 2, 2, 0, 2, 1, 0, 2, 1, 0, 2, 1]),
            (
                40,
                5,
                4,
                &[
                    3, 3, 1, 0, 1, 0, 1, 3, 0, 3, 0, 3, 0, 1, 0, 2, 3, 0, 3, 0, 1, 0, 1, 0, 1, 3,
                    2, 3, 2, 1, 2, 1, 3, 2, 3, 2, 3, 0, 3, 0,
                ],
            ),
            (
                96,
                10,
                7,
                &[
                    3, 4, 4, 6, 1, 5, 0, 3, 3, 4, 4, 6, 1, 1, 0, 0, 3, 3, 4, 4, 1, 6, 0, 0, 0, 2,
                    3, 4, 4, 6, 1, 1, 0, 0, 3, 3, 4, 6, 6, 1, 0, 0, 2, 3, 2, 6, 6, 6, 1, 0, 0, 0,
                    2, 4, 4, 6, 1, 1, 0, 5, 3, 3, 4, 4, 6, 1, 1, 0, 2, 4, 4, 4, 4, 1, 6, 1, 0, 0,
                    3, 3, 4, 6, 6, 5, 5, 5, 3, 3, 4, 4, 6, 1, 1, 0, 3, 3,
                ],
            ),
            (6, 2, 6, &[4, 2, 5, 0, 1, 3]),
        ];
        for (height, width, count, expected) in cases {
            let found = k_means(&rows(height, width), count, 10, 123_456_789);
            assert_eq!(found, expected, "{height} rows, {count} groups");
        }
    }

    #[test]
    fn equal_rows_leave_groups_empty() {
        let found = k_means(&Mat::zeros(5, 2), 3, 10, 1);
        assert!(found.iter().all(|label| *label == found[0]), "{found:?}");
    }
}

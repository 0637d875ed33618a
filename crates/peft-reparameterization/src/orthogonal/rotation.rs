//! Rotations by orthogonal blocks along a diagonal: how blocks come from skew-symmetric ones, products
//! with them, and dropout of blocks.

use std::cmp::Ordering;

use burn::module::Module;
use burn::nn::Dropout;
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use peft_core::nn::dropout_rate;
use peft_core::ops::block_diagonal;

/// How skew-symmetric matrices are read from rows that hold their strictly upper triangles.
#[derive(Module, Debug)]
pub(crate) struct Triangles {
    /// Where in a row each element of a matrix is, `[size · size]`.
    places: Tensor<1, Int>,
    /// Its sign: 1 above the diagonal, 0 on it, −1 below; `[size, size]`.
    signs: Tensor<2>,
}

impl Triangles {
    /// Of matrices of `size` × `size`.
    pub(crate) fn new(size: usize, device: &Device) -> Self {
        let mut places = Vec::with_capacity(size * size);
        let mut signs = Vec::with_capacity(size * size);
        for row in 0..size {
            for column in 0..size {
                let (low, high) = (row.min(column), row.max(column));
                // Behind `low` rows of size − 1, size − 2, … elements; of the diagonal, any will do.
                let place = (low * (2 * size - low - 1) / 2 + high - low).saturating_sub(1);
                places.push(if low == high { 0 } else { place as i64 });
                signs.push(match row.cmp(&column) {
                    Ordering::Less => 1.0_f32,
                    Ordering::Equal => 0.0,
                    Ordering::Greater => -1.0,
                });
            }
        }
        Self {
            places: Tensor::from_data(TensorData::new(places, [size * size]), device),
            signs: Tensor::from_data(TensorData::new(signs, [size, size]), device),
        }
    }

    /// `[count, size, size]` of `rows` `[count, size·(size − 1) / 2]`.
    pub(crate) fn skew(&self, rows: Tensor<2>) -> Tensor<3> {
        let ([count, _], [size, _]) = (rows.dims(), self.signs.dims());
        let signs = self.signs.clone().cast(rows.dtype());
        let elements = rows.select(1, self.places.clone());
        elements.reshape([count, size, size]) * signs.unsqueeze::<3>()
    }
}

fn identity(size: usize, like: (&Device, DType)) -> Tensor<2> {
    Tensor::<2>::eye(size, like.0).cast(like.1)
}

/// The inverse of every block, `[blocks, size, size]`, of matrices with a positive definite symmetric
/// part: by halves (Schur complements), which for them need no pivots.
fn inverse(blocks: Tensor<3>) -> Tensor<3> {
    let [_, size, _] = blocks.dims();
    if size == 1 {
        return blocks.recip();
    }
    let half = size / 2;
    let part = |row: usize, column: usize| {
        let span = |second: usize| [(0, half), (half, size - half)][second];
        let ((top, rows), (left, columns)) = (span(row), span(column));
        blocks.clone().narrow(1, top, rows).narrow(2, left, columns)
    };
    let first = inverse(part(0, 0));
    let below = part(1, 0).matmul(first.clone());
    let last = inverse(part(1, 1) - below.clone().matmul(part(0, 1)));
    let right = first.clone().matmul(part(0, 1)).matmul(last.clone()) * -1.0;
    let left = last.clone().matmul(below.clone()) * -1.0;
    let first = first - right.clone().matmul(below);
    let upper = Tensor::cat(vec![first, right], 2);
    let lower = Tensor::cat(vec![left, last], 2);
    Tensor::cat(vec![upper, lower], 1)
}

/// Cayley's map, `(I − S)(I + S)⁻¹`, of skew-symmetric blocks `[blocks, size, size]`: rotations.
pub(crate) fn cayley(skew: Tensor<3>) -> Tensor<3> {
    let [_, size, _] = skew.dims();
    let one: Tensor<3> = identity(size, (&skew.device(), skew.dtype())).unsqueeze();
    let sum = one.clone() + skew.clone();
    let near = inverse(sum.clone().without_autodiff());
    // A step of Newton's: the same value again, less rounding, and the gradient of the inverse,
    // −A⁻¹·dA·A⁻¹, for two products on the tape.
    let inverse = near.clone().matmul(one.clone() * 2.0 - sum.matmul(near));
    (one - skew).matmul(inverse)
}

/// The Cayley-Neumann parameterization (Qiu et al. 2025): powers of skew-symmetric blocks in place of an
/// inverse. `I + 2S` for two terms; for more, `I + 2S + 2S² + … + Sᵏ` with the larger of `terms` − 1 and
/// 3 for k, as upstream has it.
///
/// With upstream's sign, too: this approximates `(I + S)(I − S)⁻¹`.
pub(crate) fn neumann(skew: Tensor<3>, terms: usize) -> Tensor<3> {
    let [_, size, _] = skew.dims();
    let one: Tensor<3> = identity(size, (&skew.device(), skew.dtype())).unsqueeze();
    let sum = one + skew.clone() * 2.0;
    if terms <= 2 {
        return sum;
    }
    let mut power = skew.clone().matmul(skew.clone());
    let mut sum = sum + power.clone() * 2.0;
    for _ in 3..terms - 1 {
        power = power.matmul(skew.clone());
        sum = sum + power.clone() * 2.0;
    }
    sum + power.matmul(skew)
}

/// `x·diag(R₁, R₂, …)` for `input` `[tokens, blocks · size]` and blocks `[blocks, size, size]`.
pub(crate) fn rotate_inputs(input: Tensor<2>, blocks: Tensor<3>) -> Tensor<2> {
    block_diagonal(input, blocks)
}

/// `diag(R₁, R₂, …)·W` for `weight` `[blocks · size, columns]` and blocks `[blocks, size, size]`.
pub(crate) fn rotate_rows(weight: Tensor<2>, blocks: Tensor<3>) -> Tensor<2> {
    let [rows, columns] = weight.dims();
    let [count, size, _] = blocks.dims();
    let rotated = blocks.matmul(weight.reshape([count, size, columns]));
    rotated.reshape([rows, columns])
}

/// Multiplicative dropout (Liu et al. 2024, section 4) of blocks `[factors, blocks, size, size]`, in
/// training: in one factor, drawn anew, the dropout's share of the blocks, rounded down, become
/// identities.
pub(crate) fn drop_blocks(blocks: Tensor<4>, dropout: &Dropout) -> Tensor<4> {
    let [factors, count, size, _] = blocks.dims();
    let dropped = (dropout_rate(dropout) * count as f64) as usize;
    if dropped == 0 || !blocks.is_autodiff() {
        return blocks;
    }
    let (device, dtype) = (blocks.device(), blocks.dtype());
    // 1 for so many of them, 0 for the others.
    let drawn = |among: usize, taken: usize| {
        let coins = Tensor::<1>::random([among], Distribution::Default, &device);
        coins
            .argsort(0)
            .lower_elem(taken as i64)
            .float()
            .cast(dtype)
    };
    let mask = drawn(factors, 1).reshape([factors, 1, 1, 1])
        * drawn(count, dropped).reshape([1, count, 1, 1]);
    let one: Tensor<4> = identity(size, (&device, dtype)).unsqueeze();
    blocks * (mask.clone() * -1.0 + 1.0) + mask * one
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::DropoutConfig;
    use burn::tensor::Tolerance;
    use peft_core::device::cpu_devices;

    fn close<const D: usize>(found: Tensor<D>, expected: &[f32]) {
        let expected = TensorData::new(expected.to_vec(), found.shape());
        let tolerance = Tolerance::<f32>::relative(1e-5).set_absolute(1e-5);
        found.into_data().assert_approx_eq(&expected, tolerance);
    }

    /// Skew-symmetric blocks of numbers that repeat nowhere.
    fn skew(blocks: usize, size: usize, device: &Device) -> Tensor<3> {
        let numbers = (0..blocks * size * size).map(|at| (at as f32 * 0.7).sin());
        let data = TensorData::new(numbers.collect::<Vec<_>>(), [blocks, size, size]);
        let numbers = Tensor::<3>::from_data(data, device);
        numbers.clone() - numbers.swap_dims(1, 2)
    }

    #[test]
    fn a_row_is_the_upper_triangle_of_a_skew_symmetric_matrix() {
        for (_, device) in cpu_devices() {
            let rows = Tensor::<2>::from_data([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], &device);
            let expected = [
                0.0, 1.0, 2.0, 3.0, -1.0, 0.0, 4.0, 5.0, -2.0, -4.0, 0.0, 6.0, -3.0, -5.0, -6.0,
                0.0,
            ];
            close(Triangles::new(4, &device).skew(rows), &expected);
        }
    }

    #[test]
    fn cayleys_map_gives_rotations_whose_gradient_is_torchs() {
        for (_, device) in cpu_devices() {
            let device = device.autodiff();
            for size in [1, 2, 5, 8] {
                let blocks = cayley(skew(3, size, &device));
                let product = blocks.clone().matmul(blocks.swap_dims(1, 2));
                let one: Tensor<3> = identity(size, (&device, DType::F32)).unsqueeze();
                let one: Vec<f32> = one.repeat_dim(0, 3).into_data().iter().collect();
                close(product, &one);
            }
            let skew = skew(1, 3, &device).detach().require_grad();
            let rotation = cayley(skew.clone());
            close(
                rotation.clone(),
                &[
                    -0.42845, -0.38976, -0.81518, -0.56869, 0.81740, -0.09192, 0.70215, 0.42420,
                    -0.57187,
                ],
            );
            let weights = Tensor::<1>::from_data(
                TensorData::new((0..9).map(|at| at as f32).collect::<Vec<_>>(), [9]),
                &device,
            );
            let gradients = (rotation * weights.reshape([1, 3, 3])).sum().backward();
            close(
                skew.grad(&gradients).unwrap(),
                &[
                    1.50600, -2.02577, -2.39979, 4.40321, -6.13820, -7.40153, 0.24240, -0.93506,
                    -1.47558,
                ],
            );
        }
    }

    #[test]
    fn the_last_term_of_the_series_counts_once() {
        for (_, device) in cpu_devices() {
            // S = s·J with J² = −I: I + 2S + 2S² + 2S³ + S⁴ = (1 − 2s² + s⁴)·I + (2s − 2s³)·J.
            let turn = |s: f32| {
                let data = TensorData::new(vec![0.0, s, -s, 0.0], [1, 2, 2]);
                Tensor::<3>::from_data(data, &device)
            };
            let expected = |same: f32, turned: f32| [same, turned, -turned, same];
            close(neumann(turn(0.5), 2), &expected(1.0, 1.0));
            for terms in [3, 4] {
                close(neumann(turn(0.5), terms), &expected(0.5, 0.875));
            }
            close(neumann(turn(0.5), 5), &expected(0.5625, 0.75));
            close(neumann(turn(0.5), 6), &expected(0.625, 0.78125));
        }
    }

    #[test]
    fn inputs_and_rows_are_rotated_alike() {
        for (_, device) in cpu_devices() {
            let blocks = cayley(skew(3, 4, &device));
            let random = |shape: [usize; 2]| {
                Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device)
            };
            let (input, weight) = (random([5, 12]), random([12, 7]));
            let one = rotate_inputs(input.clone(), blocks.clone()).matmul(weight.clone());
            let other = input.matmul(rotate_rows(weight, blocks));
            let tolerance = Tolerance::<f32>::relative(1e-4).set_absolute(1e-4);
            one.into_data()
                .assert_approx_eq(&other.into_data(), tolerance);
        }
    }

    #[test]
    fn so_many_blocks_of_one_factor_are_dropped_in_training() {
        for (_, device) in cpu_devices() {
            let dropout = DropoutConfig::new(0.45).init();
            let twos = |device: &Device| Tensor::<4>::ones([3, 10, 2, 2], device) * 2.0;
            let kept = drop_blocks(twos(&device), &dropout).into_data();
            kept.assert_eq(&twos(&device).into_data(), true);
            let dropped = drop_blocks(twos(&device.autodiff()), &dropout).into_data();
            let numbers: Vec<i32> = dropped.iter::<f32>().map(|number| number as i32).collect();
            let mut counts = Vec::new();
            for factor in numbers.chunks(40) {
                let identities = factor.chunks(4).filter(|block| *block == [1, 0, 0, 1]);
                let whole = factor.chunks(4).filter(|block| *block == [2; 4]);
                counts.push((identities.count(), whole.count()));
            }
            counts.sort_unstable();
            assert_eq!(counts, [(0, 10), (0, 10), (4, 6)]);
        }
    }
}

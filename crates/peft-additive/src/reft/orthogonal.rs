//! Matrices with orthonormal columns, as torch parametrizes them.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use peft_core::method::Plan;

/// What the diagonal of a fresh `original` is. Its sign counts alone, and only as far as it reaches 1: see
/// [`OrthogonalProjection::original`].
const DIAGONAL: f32 = -1.75;

/// A projection `[d, r]` with orthonormal columns whatever its parameters are: torch's
/// `nn.utils.parametrizations.orthogonal` for `r < d`, with its Householder map and its base.
///
/// `Q = B (H₁ ⋯ H_r)[:, ..r] diag(s)`, H of the columns of `original`, B fixed and orthogonal.
#[derive(Module, Debug)]
pub struct OrthogonalProjection {
    /// `[d, r]`. Below its diagonal are the vectors of the reflections, whose elements on the diagonal are 1. On its diagonal
    /// are the signs s of the columns, rounded towards zero as torch does: less than 1 makes a column vanish.
    /// What is above has no effect.
    pub original: Param<Tensor<2>>,
    /// B, `[d, d]`, frozen: where the parametrization starts from.
    pub base: Param<Tensor<2>>,
}

impl OrthogonalProjection {
    /// A projection that begins with `r` random directions, all equally likely.
    pub(super) fn new([d, r]: [usize; 2], plan: &mut Plan, like: (&Device, DType)) -> Self {
        if !plan.is_new() {
            return Self {
                original: plan.init().zeros([d, r], like),
                base: plan.init().zeros([d, d], like).set_require_grad(false),
            };
        }
        let host = peft_core::device::host();
        let drawn = plan.init().normal([d, r], 1.0, (&host, DType::F32)).val();
        let drawn: Vec<f64> = drawn.into_data().iter::<f64>().collect();
        let mut original = vec![0.0; d * r];
        for column in 0..r {
            original[column * r + column] = DIAGONAL;
        }
        let param = |values: Vec<f32>, shape: [usize; 2]| {
            Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), like))
        };
        Self {
            original: param(original, [d, r]),
            base: param(random_orthogonal(&drawn, [d, r]), [d, d]).set_require_grad(false),
        }
    }

    /// Q, `[d, r]`, in the number format of `base`.
    pub(super) fn matrix(&self) -> Tensor<2> {
        let (original, base) = (self.original.val(), self.base.val());
        let dtype = base.dtype();
        // Sums of squares need more digits than halves have.
        let [original, base] = [original, base].map(|value| match dtype {
            DType::F16 | DType::BF16 => value.cast(DType::F32),
            _ => value,
        });
        let [d, r] = original.dims();
        let identity = Tensor::<2>::eye(r, &original.device()).cast(original.dtype());
        let top = |of: &Tensor<2>| of.clone().narrow(0, 0, r);
        let signs = (top(&original).detach() * identity.clone())
            .sum_dim(0)
            .trunc();
        let start = match d - r {
            0 => identity.clone(),
            below => {
                let zeros = Tensor::zeros([below, r], (&original.device(), original.dtype()));
                Tensor::cat(vec![identity.clone(), zeros], 0)
            }
        };
        let vectors = original.tril(-1) + start.clone();
        let t = compact_wy(&vectors, &identity);
        let reflected = start - vectors.clone().matmul(t.matmul(top(&vectors).transpose()));
        base.matmul(reflected * signs).cast(dtype)
    }
}

/// T of `H₁ ⋯ H_r = I − V T Vᵀ` for reflections at the columns of V, `[r, r]`, upper triangular (Schreiber and Van Loan
/// 1989). T of two halves of the chain is `[[T₁, −T₁ V₁ᵀ V₂ T₂], [0, T₂]]`, which makes it of blocks of 1, of 2, of 4.
fn compact_wy(vectors: &Tensor<2>, identity: &Tensor<2>) -> Tensor<2> {
    let [_, rank] = vectors.dims();
    let products = vectors.clone().transpose().matmul(vectors.clone());
    // On the diagonal alone: 2 / ‖v‖².
    let mut t = identity.clone() * 2.0 / (products.clone() * identity.clone()).sum_dim(0);
    let mut block = 1;
    while block < rank {
        let pair = 2 * block;
        let values: Vec<f32> = (0..rank * rank)
            .map(|at| {
                let (row, column) = (at / rank, at % rank);
                let same = row / pair == column / pair;
                f32::from(same && row % pair < block && column % pair >= block)
            })
            .collect();
        let halves = TensorData::new(values, [rank, rank]);
        let halves = Tensor::<2>::from_data(halves, (&t.device(), t.dtype()));
        t = t.clone() - t.clone().matmul(products.clone() * halves).matmul(t);
        block = pair;
    }
    t
}

/// An orthogonal matrix `[d, d]`, row after row, whose first `r` columns are uniformly distributed if `drawn` `[d, r]` is
/// normal: a product of reflections at vectors of decreasing length (Stewart 1980, The Efficient Generation of Random
/// Orthogonal Matrices, section 3).
fn random_orthogonal(drawn: &[f64], [d, r]: [usize; 2]) -> Vec<f32> {
    let mut matrix = vec![0.0; d * d];
    for row in 0..d {
        matrix[row * d + row] = 1.0;
    }
    for column in 0..r {
        let mut vector: Vec<f64> = (column..d).map(|row| drawn[row * r + column]).collect();
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        vector[0] += length.copysign(vector[0]);
        let square = vector.iter().map(|x| x * x).sum::<f64>();
        if square == 0.0 {
            continue;
        }
        for row in matrix.chunks_mut(d) {
            let part = &mut row[column..];
            let along: f64 = part.iter().zip(&vector).map(|(a, b)| a * b).sum();
            for (value, direction) in part.iter_mut().zip(&vector) {
                *value -= 2.0 * along / square * direction;
            }
        }
    }
    matrix.into_iter().map(|value| value as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::method::Init;

    fn projection(d: usize, r: usize, device: &Device) -> OrthogonalProjection {
        let mut init = Init::new(3);
        let drawn = init.normal([d, r], 1.0, (device, DType::F32)).val();
        let drawn: Vec<f64> = drawn.into_data().iter::<f64>().collect();
        let base = TensorData::new(random_orthogonal(&drawn, [d, r]), [d, d]);
        let original = init.normal([d, r], 0.4, (device, DType::F32));
        let signs = Tensor::<2>::eye(r, device) * 1.5;
        let signs = Tensor::cat(vec![signs, Tensor::zeros([d - r, r], device)], 0);
        OrthogonalProjection {
            original: original.map(|value| value.clone() - value.triu(0).tril(0) + signs),
            base: Param::from_tensor(Tensor::from_data(base, device)),
        }
    }

    fn values(tensor: Tensor<2>) -> Vec<f64> {
        tensor.into_data().iter::<f64>().collect()
    }

    #[test]
    fn columns_are_orthonormal_and_the_product_of_the_reflections() {
        for (_, device) in peft_core::device::cpu_devices() {
            for (d, r) in [(6, 1), (9, 2), (12, 3), (16, 5), (24, 8)] {
                let projection = projection(d, r, &device);
                let q = values(projection.matrix());
                for (a, b) in (0..r).flat_map(|a| (0..r).map(move |b| (a, b))) {
                    let product: f64 = (0..d).map(|row| q[row * r + a] * q[row * r + b]).sum();
                    assert!((product - f64::from(a == b)).abs() < 1e-5, "{d} {r}");
                }
                // One reflection after the other, on the columns of the base.
                let original = values(projection.original.val());
                let mut rows = values(projection.base.val());
                for column in 0..r {
                    let vector: Vec<f64> = (0..d)
                        .map(|row| match row {
                            _ if row < column => 0.0,
                            _ if row == column => 1.0,
                            _ => original[row * r + column],
                        })
                        .collect();
                    let square: f64 = vector.iter().map(|x| x * x).sum();
                    for row in rows.chunks_mut(d) {
                        let along: f64 = row.iter().zip(&vector).map(|(a, b)| a * b).sum();
                        for (value, direction) in row.iter_mut().zip(&vector) {
                            *value -= 2.0 * along * direction / square;
                        }
                    }
                }
                for row in 0..d {
                    for column in 0..r {
                        let distance = rows[row * d + column] - q[row * r + column];
                        assert!(distance.abs() < 1e-5, "{d} {r} at {row} {column}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_diagonal_is_rounded_towards_zero() {
        let (_, device) = &peft_core::device::cpu_devices()[0];
        let fresh = projection(8, 2, device);
        let before = values(fresh.matrix());
        let with = |first: f32, second: f32| {
            let change = Tensor::<2>::from_data([[first - 1.5, 0.0], [0.0, second - 1.5]], device);
            let zeros = Tensor::zeros([6, 2], device);
            let original = fresh.original.val() + Tensor::cat(vec![change, zeros], 0);
            let projection = OrthogonalProjection {
                original: Param::from_tensor(original),
                base: fresh.base.clone(),
            };
            values(projection.matrix())
        };
        for (at, (moved, before)) in with(-1.0, 0.9).into_iter().zip(before).enumerate() {
            let expected = if at % 2 == 0 { -before } else { 0.0 };
            assert!(
                (moved - expected).abs() < 1e-6,
                "{at}: {moved} for {expected}"
            );
        }
    }

    /// Gradients of a linear function of Q against central differences.
    #[test]
    fn gradients_are_slopes() {
        for (_, plain) in peft_core::device::cpu_devices() {
            let (d, r) = (7, 3);
            let fresh = projection(d, r, &plain);
            let device = plain.clone().autodiff();
            let tensor = |data: TensorData| Tensor::<2>::from_data(data, &device);
            let weights = Init::new(8).normal([d, r], 1.0, (&plain, DType::F32));
            let weights = tensor(weights.val().into_data());
            let function = |original: &[f32]| {
                let original = TensorData::new(original.to_vec(), [d, r]);
                let projection = OrthogonalProjection {
                    original: Param::from_tensor(tensor(original)),
                    base: Param::from_tensor(tensor(fresh.base.val().into_data())),
                };
                let value = (projection.matrix() * weights.clone()).sum();
                (value, projection)
            };
            let original: Vec<f32> = fresh.original.val().into_data().try_to_vec().unwrap();
            let (value, at) = function(&original);
            let gradients = value.backward();
            let gradient = at.original.val().grad(&gradients).unwrap();
            let gradient: Vec<f32> = gradient.into_data().try_to_vec().unwrap();
            let step = 2e-2_f32;
            for (index, gradient) in gradient.iter().enumerate() {
                let moved = |by: f32| {
                    let mut original = original.clone();
                    original[index] += by;
                    function(&original).0.into_scalar::<f32>()
                };
                // Of fourth order: in single precision steps must be large.
                let near = 8.0 * (moved(step) - moved(-step));
                let far = moved(2.0 * step) - moved(-2.0 * step);
                let slope = (near - far) / (12.0 * step);
                assert!(
                    (slope - gradient).abs() < 1e-3,
                    "{index}: {slope} for {gradient}"
                );
            }
            assert!(gradient.iter().any(|gradient| gradient.abs() > 0.1));
        }
    }
}

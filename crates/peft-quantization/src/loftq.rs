//! LoftQ: a quantized weight and the low-rank factors that make up for what quantization took.

use faer::{Mat, MatRef};
use peft_ops::quantized::QuantizedMatrix;

use crate::error::{check_finite, check_shape};
use crate::requantize::relative_norm;
use crate::{Error, FourBit, Result};

/// A weight W `[out, in]` as Q + (A B)ᵀ: Q quantized, A and B of low rank.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoftQ {
    /// Q, `[out, in]`.
    pub quantized: FourBit,
    /// A, `[in, rank]`, row-major.
    pub down: Vec<f32>,
    /// B, `[rank, out]`, row-major. The change of the layer is `x A B`, with a scale of 1.
    pub up: Vec<f32>,
    /// Number of columns of A.
    pub rank: usize,
    /// ‖W − Q(W)‖ / ‖W‖ (Frobenius) of quantization alone.
    pub error_before: f64,
    /// ‖W − Q − (A B)ᵀ‖ / ‖W‖ (Frobenius).
    pub error_after: f64,
}

/// Quantizes what the factors leave over, then takes the factors from what quantization leaves over,
/// `iterations` times (Li et al. 2023, arXiv:2310.08659, algorithm 1; upstream's `loftq_init`).
///
/// `weight` is row-major of `shape` `[out, in]`. `quantize` is given matrices of that shape. The
/// factors share the singular values evenly: A has their roots times the right vectors, B their roots
/// times the left ones. Upstream's `loftq_iter` is 1.
///
/// # Errors
///
/// - [`Error::Setting`] if `rank` is not in 1 to min(out, in), `iterations` is 0, the matrix has no
///   element, or `quantize` gives another shape.
/// - [`Error::Length`] and [`Error::NotFinite`] for a weight that is not a finite matrix of `shape`.
/// - [`Error::SingularValues`] if they are not found.
/// - Whatever `quantize` returns.
pub fn loftq(
    weight: &[f32],
    shape: [usize; 2],
    rank: usize,
    iterations: usize,
    quantize: impl Fn(&[f32]) -> Result<FourBit>,
) -> Result<LoftQ> {
    check_shape(weight.len(), shape)?;
    check_finite(weight, "a 4-bit matrix")?;
    let [rows, columns] = shape;
    let most = rows.min(columns);
    if rank == 0 || rank > most {
        return Err(Error::setting("rank", rank, format!("from 1 to {most}")));
    }
    if iterations == 0 {
        return Err(Error::setting("iterations", iterations, "at least 1"));
    }
    let mut left_over = weight.to_vec();
    let mut error_before = None;
    let mut iteration = 0;
    loop {
        iteration += 1;
        let quantized = quantize(&left_over)?;
        if quantized.shape() != shape {
            return Err(Error::setting(
                "quantize",
                format!("a matrix of shape {:?}", quantized.shape()),
                format!("one of {shape:?}"),
            ));
        }
        let residual = difference(weight, &quantized.to_values());
        let error_before = *error_before.get_or_insert_with(|| relative_norm(&residual, weight));
        let (left, right) = factors(&residual, shape, rank)?;
        let product = row_major((&left * &right).as_ref());
        if iteration == iterations {
            return Ok(LoftQ {
                quantized,
                down: row_major(right.transpose()),
                up: row_major(left.transpose()),
                rank,
                error_before,
                error_after: relative_norm(&difference(&residual, &product), weight),
            });
        }
        left_over = difference(weight, &product);
    }
}

fn difference(left: &[f32], right: &[f32]) -> Vec<f32> {
    left.iter()
        .zip(right)
        .map(|(left, right)| left - right)
        .collect()
}

/// `[rows, rank]` and `[rank, columns]`, whose product is the nearest one of that rank.
fn factors(matrix: &[f32], shape: [usize; 2], rank: usize) -> Result<(Mat<f32>, Mat<f32>)> {
    let [rows, columns] = shape;
    let matrix = MatRef::from_row_major_slice(matrix, rows, columns).to_owned();
    let svd = matrix
        .thin_svd()
        .map_err(|_| Error::SingularValues { rows, columns })?;
    let values = svd.S().column_vector();
    let roots: Vec<f32> = values.iter().take(rank).map(|value| value.sqrt()).collect();
    let (u, v) = (svd.U(), svd.V());
    Ok((
        Mat::from_fn(rows, rank, |row, index| u[(row, index)] * roots[index]),
        Mat::from_fn(rank, columns, |index, column| {
            roots[index] * v[(column, index)]
        }),
    ))
}

fn row_major(matrix: MatRef<'_, f32>) -> Vec<f32> {
    let mut values = Vec::with_capacity(matrix.nrows() * matrix.ncols());
    for row in 0..matrix.nrows() {
        values.extend((0..matrix.ncols()).map(|column| matrix[(row, column)]));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FourBitKind, FourBitOptions};

    const SHAPE: [usize; 2] = [40, 64];

    fn weight() -> Vec<f32> {
        (0..SHAPE[0] * SHAPE[1])
            .map(|index| (index as f32 * 12.9898).sin() * (1.0 + (index % 7) as f32))
            .collect()
    }

    fn quantize(values: &[f32]) -> Result<FourBit> {
        FourBit::quantize(values, SHAPE, FourBitOptions::new(FourBitKind::Nf4))
    }

    #[test]
    fn factors_make_up_for_quantization() {
        let weight = weight();
        let mut before = f64::MAX;
        for (rank, iterations) in [(1, 1), (8, 1), (8, 5), (40, 1)] {
            let found = loftq(&weight, SHAPE, rank, iterations, quantize).unwrap();
            assert!(found.error_after < found.error_before);
            assert!(found.error_after < before, "{rank} {iterations}");
            before = found.error_after;
            // The factors as a layer uses them give the same error.
            let quantized = found.quantized.to_values();
            let mut errors = Vec::new();
            for row in 0..SHAPE[0] {
                for column in 0..SHAPE[1] {
                    let change: f32 = (0..rank)
                        .map(|k| found.down[column * rank + k] * found.up[k * SHAPE[0] + row])
                        .sum();
                    let at = row * SHAPE[1] + column;
                    errors.push(weight[at] - quantized[at] - change);
                }
            }
            let error = relative_norm(&errors, &weight);
            assert!((error - found.error_after).abs() < 1e-5, "{error}");
        }
        // The whole rank leaves nothing.
        assert!(before < 1e-5, "{before}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let weight = weight();
        for (rank, iterations) in [(0, 1), (41, 1), (8, 0)] {
            let refused = loftq(&weight, SHAPE, rank, iterations, quantize).unwrap_err();
            assert!(matches!(refused, Error::Setting { .. }));
        }
        let other = |values: &[f32]| {
            FourBit::quantize(values, [64, 40], FourBitOptions::new(FourBitKind::Nf4))
        };
        let refused = loftq(&weight, SHAPE, 4, 1, other).unwrap_err();
        assert!(matches!(
            refused,
            Error::Setting {
                setting: "quantize",
                ..
            }
        ));
    }
}

//! A dense matrix in the format of a quantized one: what is left of a merged adapter.

use peft_ops::quantized::QuantizedMatrix;

use crate::{FourBit, Result};

/// A matrix quantized again, and what that cost.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Requantized {
    /// The matrix, in the format of the one it is to replace.
    pub weight: FourBit,
    /// Frobenius norm of the error, as a share of the dense matrix's.
    pub relative_error: f64,
    /// Largest error of an element.
    pub max_error: f32,
}

/// Quantizes `dense` as `like` is quantized: kind, block size and double quantization; `dense` is
/// row-major of the shape of `like`.
///
/// A merged adapter changes weights by less than quantization does, as a rule: look at the errors, and
/// keep the adapter unmerged where they are larger than its change.
///
/// # Errors
///
/// Those of [`FourBit::quantize`].
pub fn requantize(dense: &[f32], like: &FourBit) -> Result<Requantized> {
    let weight = FourBit::quantize(dense, like.shape(), like.options())?.with_dtype(like.dtype());
    let errors: Vec<f32> = weight
        .to_values()
        .iter()
        .zip(dense)
        .map(|(value, dense)| value - dense)
        .collect();
    Ok(Requantized {
        relative_error: relative_norm(&errors, dense),
        max_error: crate::scales::absolute_maximum(&errors),
        weight,
    })
}

/// The Frobenius norm of one matrix as a share of another's; 0 of 0 is 0.
pub(crate) fn relative_norm(errors: &[f32], whole: &[f32]) -> f64 {
    let norm = |values: &[f32]| {
        let squares = values.iter().map(|value| f64::from(*value).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let (error, whole) = (norm(errors), norm(whole));
    if error > 0.0 { error / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FourBitKind, FourBitOptions};

    #[test]
    fn what_was_quantized_stays_as_it_is() {
        let values: Vec<f32> = (0..300).map(|index| (index as f32 * 1.7).sin()).collect();
        for kind in [FourBitKind::Nf4, FourBitKind::Fp4] {
            let options = FourBitOptions::new(kind);
            let once = FourBit::quantize(&values, [12, 25], options).unwrap();
            let again = requantize(&once.to_values(), &once).unwrap();
            assert!(again.relative_error < 1e-6, "{}", again.relative_error);
            let first = requantize(&values, &once).unwrap();
            assert_eq!(first.weight, once);
            let largest = kind.largest_gap() / 2.0;
            assert!(first.max_error > 0.1 * largest && first.max_error <= largest + 1e-6);
            assert!(first.relative_error > 0.02 && first.relative_error < 0.2);
        }
    }
}

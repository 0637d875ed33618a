//! Matrices in 16-bit floats, for tables, heads and layers that are not quantized.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use peft_ops::quantized::QuantizedMatrix;
use serde::{Deserialize, Serialize};

use crate::error::check_shape;
use crate::{Error, Result};

/// A number format of weights, called as in torch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FloatFormat {
    /// 32 bits.
    Float32,
    /// 16 bits, with the exponents of `float32` and 8 bits of precision.
    Bfloat16,
    /// 16 bits, up to 65,504 and with 11 bits of precision.
    Float16,
}

impl FloatFormat {
    /// Torch's name: `float32`, `bfloat16` or `float16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }
}

impl std::fmt::Display for FloatFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Halves {
    Bfloat16(Vec<bf16>),
    Float16(Vec<f16>),
}

/// A matrix of 16-bit floats, for embedding tables, heads and layers that are not quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct HalfRows {
    halves: Halves,
    shape: [usize; 2],
}

impl HalfRows {
    /// Rounds a matrix to `bfloat16`, to the nearest; `values` row-major of `shape` `[rows, columns]`.
    ///
    /// # Errors
    ///
    /// - [`Error::Length`] if the values do not fill the matrix, [`Error::Setting`] if it has no element.
    /// - [`Error::NotFinite`] if a value is no number, or above 3.39e38.
    pub fn bf16(values: &[f32], shape: [usize; 2]) -> Result<Self> {
        let mut halves = vec![bf16::ZERO; values.len()];
        halves.convert_from_f32_slice(values);
        Self::checked(Halves::Bfloat16(halves), values, shape)
    }

    /// Rounds a matrix to `float16`, to the nearest; `values` row-major of `shape` `[rows, columns]`.
    ///
    /// # Errors
    ///
    /// - [`Error::Length`] if the values do not fill the matrix, [`Error::Setting`] if it has no element.
    /// - [`Error::NotFinite`] if a value is no number, or above 65,504.
    pub fn f16(values: &[f32], shape: [usize; 2]) -> Result<Self> {
        let mut halves = vec![f16::ZERO; values.len()];
        halves.convert_from_f32_slice(values);
        Self::checked(Halves::Float16(halves), values, shape)
    }

    fn checked(halves: Halves, values: &[f32], shape: [usize; 2]) -> Result<Self> {
        check_shape(values.len(), shape)?;
        let rows = Self { halves, shape };
        let wrong = match &rows.halves {
            Halves::Bfloat16(halves) => halves.iter().position(|half| !half.is_finite()),
            Halves::Float16(halves) => halves.iter().position(|half| !half.is_finite()),
        };
        match wrong {
            None => Ok(rows),
            Some(index) => Err(Error::NotFinite {
                index,
                value: values[index],
                format: rows.float_format().name(),
            }),
        }
    }

    /// `bfloat16` or `float16`.
    pub fn float_format(&self) -> FloatFormat {
        match self.halves {
            Halves::Bfloat16(_) => FloatFormat::Bfloat16,
            Halves::Float16(_) => FloatFormat::Float16,
        }
    }
}

impl QuantizedMatrix for HalfRows {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        let start = first * self.shape[1];
        let range = start..start + values.len();
        match &self.halves {
            Halves::Bfloat16(halves) => halves[range].convert_to_f32_slice(values),
            Halves::Float16(halves) => halves[range].convert_to_f32_slice(values),
        }
    }

    fn bfloat16(&self) -> Option<&[u16]> {
        match &self.halves {
            Halves::Bfloat16(halves) => Some(halves.reinterpret_cast()),
            Halves::Float16(_) => None,
        }
    }

    fn bytes(&self) -> usize {
        2 * self.shape[0] * self.shape[1]
    }

    fn format(&self) -> &'static str {
        self.float_format().name()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_rounded() {
        let values: Vec<f32> = (0..35).map(|index| (index as f32 - 17.0) * 0.37).collect();
        for (rows, share) in [
            (HalfRows::bf16(&values, [7, 5]).unwrap(), 1.0 / 256.0),
            (HalfRows::f16(&values, [7, 5]).unwrap(), 1.0 / 2048.0),
        ] {
            assert_eq!(rows.bytes(), 70);
            let mut again = [0.0; 10];
            rows.decode(3, &mut again);
            for (value, again) in values[15..25].iter().zip(again) {
                assert!(
                    (value - again).abs() <= value.abs() * share,
                    "{value} {again}"
                );
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let values = [0.0, 1e5, f32::NAN];
        assert!(HalfRows::bf16(&values[..2], [1, 2]).is_ok());
        for (refused, at) in [
            (HalfRows::f16(&values, [1, 3]), 1),
            (HalfRows::bf16(&values, [1, 3]), 2),
        ] {
            let refused = refused.unwrap_err();
            assert!(matches!(refused, Error::NotFinite { index, .. } if index == at));
        }
        assert!(matches!(
            HalfRows::bf16(&values, [2, 2]).unwrap_err(),
            Error::Length { .. }
        ));
    }
}

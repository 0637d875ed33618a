//! Matrices that Burn quantized: symmetric integers of 8 or 4 bits.

use burn::tensor::quantization::{
    QuantMode, QuantScheme, QuantStore, QuantValue, QuantizedBytes, ScaleDtype,
};
use burn::tensor::{DType, Device, Tensor, TensorData};
use peft_ops::quantized::{BlockScales, Codes, PackedMatrix, QuantizedMatrix};
use serde::{Deserialize, Serialize};

use crate::error::{check_finite, check_shape};
use crate::{Error, Result};

/// Burn's integers, by their number of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BurnScheme {
    /// From -127 to 127 (`Q8S`).
    Int8,
    /// From -7 to 7 (`Q4S`).
    Int4,
}

impl BurnScheme {
    /// Name: `int8` or `int4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Burn's scheme: `f32` scales for blocks of that many columns of a row, or one for the matrix.
    pub fn scheme(self, block_size: Option<u8>, store: QuantStore) -> QuantScheme {
        let value = match self {
            Self::Int8 => QuantValue::Q8S,
            Self::Int4 => QuantValue::Q4S,
        };
        let scheme = QuantScheme::default().with_value(value).with_store(store);
        match block_size {
            Some(block_size) => scheme.per_block([block_size], ScaleDtype::F32),
            None => scheme.per_tensor(ScaleDtype::F32),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Integers {
    Eight(Vec<i8>),
    /// Two to a byte in two's complement, the first in the low nibble; a last byte may be half used.
    Four(Vec<u8>),
}

/// A matrix of Burn's integers: an element is its integer times the scale of its block, exactly as Burn's
/// `dequantize` gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct BurnRows {
    integers: Integers,
    /// One for every block.
    scales: Vec<f32>,
    /// Elements that share a scale: some columns of a row, or all.
    block_size: usize,
    shape: [usize; 2],
}

impl BurnRows {
    /// Takes over the integers and scales of a tensor that Burn quantized, `[rows, columns]`.
    ///
    /// # Errors
    ///
    /// [`Error::Scheme`] if the tensor is not quantized, or otherwise than symmetrically to 8 or 4
    /// bits with one scale for the tensor or for blocks that are parts of rows.
    pub fn from_tensor(tensor: Tensor<2>) -> Result<Self> {
        let shape: [usize; 2] = tensor.dims();
        let data = tensor.into_data();
        let DType::QFloat(scheme) = data.dtype() else {
            return Err(refused(format!(
                "it is stored as {:?}; call `quantize_dynamic` on it first",
                data.dtype()
            )));
        };
        let block_size = check_scheme(&scheme, shape)?;
        let bytes = QuantizedBytes {
            shape: data.shape().clone(),
            bytes: data.into_bytes(),
            scheme,
        };
        let (integers, scales) = bytes.into_vec_i8();
        // Two-level schemes: block scales are relative to the tensor's.
        let global = scales.global.unwrap_or(1.0);
        let scales = scales.block.iter().map(|scale| global * scale).collect();
        let integers = match scheme.value {
            QuantValue::Q4F | QuantValue::Q4S => Integers::Four(nibbles(&integers)),
            _ => Integers::Eight(integers),
        };
        Ok(Self {
            integers,
            scales,
            block_size,
            shape,
        })
    }

    /// Quantizes a matrix by Burn's `quantize_dynamic` on `device`; `values` row-major of `shape`
    /// `[rows, columns]`.
    ///
    /// # Errors
    ///
    /// - [`Error::Length`] if the values do not fill the matrix, [`Error::Setting`] if it has no element.
    /// - [`Error::NotFinite`] if a value is a NaN or an infinity.
    /// - [`Error::Scheme`] if the scheme is none of those of [`from_tensor`](Self::from_tensor).
    ///
    /// # Panics
    ///
    /// If the device's backend does not quantize in that scheme: `ndarray` has 8 bits only.
    pub fn quantize(
        values: &[f32],
        shape: [usize; 2],
        scheme: &QuantScheme,
        device: &Device,
    ) -> Result<Self> {
        check_shape(values.len(), shape)?;
        check_finite(values, "an integer with a scale")?;
        check_scheme(scheme, shape)?;
        let data = TensorData::new(values.to_vec(), shape);
        let tensor = Tensor::<2>::from_data(data, (device, DType::F32));
        Self::from_tensor(tensor.quantize_dynamic(scheme))
    }

    /// Elements that share a scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// One scale for every block.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }
}

impl QuantizedMatrix for BurnRows {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        let mut at = first * self.shape[1];
        let mut rest = values;
        while !rest.is_empty() {
            let block = at / self.block_size;
            let count = ((block + 1) * self.block_size - at).min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            let scale = self.scales[block];
            match &self.integers {
                Integers::Eight(integers) => {
                    for (value, integer) in now.iter_mut().zip(&integers[at..]) {
                        *value = scale * f32::from(*integer);
                    }
                }
                Integers::Four(bytes) => decode_nibbles(bytes, at, scale, now),
            }
            at += count;
            rest = later;
        }
    }

    fn packed(&self) -> Option<PackedMatrix> {
        let codes = match &self.integers {
            Integers::Eight(integers) => {
                let values = (0..=u8::MAX).map(|code| f32::from(code.cast_signed()));
                let codes = integers.iter().map(|integer| integer.cast_unsigned());
                Codes::new(codes, 8, values.collect())
            }
            Integers::Four(bytes) => {
                // The sign is the highest of four bits.
                let values = (0..16_u8).map(|code| f32::from((code << 4).cast_signed() >> 4));
                let nibble = |index: usize| (bytes[index / 2] >> (4 * (index % 2))) & 15;
                let elements = 0..self.shape[0] * self.shape[1];
                Codes::new(elements.map(nibble), 4, values.collect())
            }
        };
        Some(PackedMatrix {
            codes,
            block_size: self.block_size,
            scales: BlockScales::Plain(self.scales.clone()),
        })
    }

    fn bytes(&self) -> usize {
        let integers = match &self.integers {
            Integers::Eight(integers) => integers.len(),
            Integers::Four(bytes) => bytes.len(),
        };
        integers + size_of_val(self.scales.as_slice())
    }

    fn format(&self) -> &'static str {
        match self.integers {
            Integers::Eight(_) => "int8",
            Integers::Four(_) => "int4",
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

fn refused(reason: String) -> Error {
    Error::Scheme { reason }
}

/// Elements that share a scale, in a scheme that is read.
fn check_scheme(scheme: &QuantScheme, shape: [usize; 2]) -> Result<usize> {
    let [rows, columns] = shape;
    let known = matches!(
        scheme.value,
        QuantValue::Q8F | QuantValue::Q8S | QuantValue::Q4F | QuantValue::Q4S
    );
    if scheme.mode != QuantMode::Symmetric || !known {
        return Err(refused(format!(
            "it holds {:?} values in mode {:?}; symmetric integers of 8 or 4 bits are read",
            scheme.value, scheme.mode
        )));
    }
    if !matches!(scheme.store, QuantStore::Native | QuantStore::PackedU32(0)) {
        return Err(refused(format!(
            "its values are stored as {:?}; those quantized along rows are read",
            scheme.store
        )));
    }
    let Some(block) = scheme.block_size() else {
        return Ok(rows * columns);
    };
    match block.to_dim_vec(2)[..] {
        [1, width] if width > 0 && columns.is_multiple_of(usize::from(width)) => {
            Ok(usize::from(width))
        }
        _ => Err(refused(format!(
            "blocks of {:?} are no even parts of rows of {columns} values; choose a divisor, or one \
             scale for the matrix",
            block.as_slice()
        ))),
    }
}

fn nibbles(integers: &[i8]) -> Vec<u8> {
    let nibble = |integer: i8| integer.cast_unsigned() & 15;
    integers
        .chunks(2)
        .map(|pair| nibble(pair[0]) | pair.get(1).map_or(0, |second| nibble(*second) << 4))
        .collect()
}

#[inline]
fn low(byte: u8) -> f32 {
    f32::from((byte << 4).cast_signed() >> 4)
}

#[inline]
fn high(byte: u8) -> f32 {
    f32::from(byte.cast_signed() >> 4)
}

/// Decodes elements of one block, from element `at` of the matrix on.
fn decode_nibbles(bytes: &[u8], at: usize, scale: f32, values: &mut [f32]) {
    let (first, values) = values.split_at_mut(at % 2);
    if let [first] = first {
        *first = scale * high(bytes[at / 2]);
    }
    let (pairs, last) = values.as_chunks_mut::<2>();
    let bytes = &bytes[at.div_ceil(2)..];
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [scale * low(*byte), scale * high(*byte)];
    }
    if let [last] = last {
        *last = scale * low(bytes[pairs.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_keep_their_signs() {
        let integers: Vec<i8> = (-8..8).collect();
        for count in [16, 15] {
            let bytes = nibbles(&integers[..count]);
            assert_eq!(bytes.len(), 8);
            for first in 0..count {
                let mut values = vec![0.0; count - first];
                decode_nibbles(&bytes, first, 0.5, &mut values);
                for (value, integer) in values.iter().zip(&integers[first..]) {
                    assert_eq!(value.to_bits(), (0.5 * f32::from(*integer)).to_bits());
                }
            }
        }
    }
}

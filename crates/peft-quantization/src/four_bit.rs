//! Matrices in bitsandbytes' 4-bit formats.

use peft_ops::quantized::{Codes, PackedMatrix, QuantizedMatrix};
use rayon::prelude::*;

use crate::error::{check_finite, check_shape};
use crate::scales::absolute_maximum;
use crate::tables::{FourBitKind, Table};
use crate::{Error, FloatFormat, Result, Scales};

/// Block sizes there are.
pub const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Blocks with a smaller absolute maximum are divided by this instead.
const LEAST: f32 = 1e-38;

/// Blocks that a thread takes at least.
const BLOCKS_A_TASK: usize = 256;

/// How a matrix is quantized to 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FourBitOptions {
    /// What the codes stand for.
    pub kind: FourBitKind,
    /// Elements that share a scale, one of [`BLOCK_SIZES`]. Blocks run on over the ends of rows;
    /// the last one may be shorter.
    pub block_size: usize,
    /// Whether the scales are quantized, too (`compress_statistics`).
    pub double_quantization: bool,
}

impl FourBitOptions {
    /// Blocks of 64 and plain scales, bitsandbytes' defaults.
    pub fn new(kind: FourBitKind) -> Self {
        Self {
            kind,
            block_size: 64,
            double_quantization: false,
        }
    }

    /// Sets [`block_size`](Self::block_size).
    #[must_use]
    pub fn with_block_size(mut self, block_size: usize) -> Self {
        self.block_size = block_size;
        self
    }

    /// Sets [`double_quantization`](Self::double_quantization).
    #[must_use]
    pub fn with_double_quantization(mut self, on: bool) -> Self {
        self.double_quantization = on;
        self
    }
}

/// A matrix in 4 bits: codes of 16 values each, and a scale for every block.
///
/// An element is the value of its code times the scale of its block (Dettmers et al. 2023, QLoRA,
/// section 3). The codes are those of bitsandbytes 0.50's `quantize_4bit`.
#[derive(Clone, Debug, PartialEq)]
pub struct FourBit {
    pub(crate) kind: FourBitKind,
    pub(crate) block_size: usize,
    pub(crate) shape: [usize; 2],
    /// Two to a byte, the first in the high nibble; a last byte may be half used.
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Scales,
    pub(crate) dtype: FloatFormat,
}

impl FourBit {
    /// Quantizes a matrix, `values` row-major of `shape` `[rows, columns]`, on all cores.
    ///
    /// Codes, scales and codes of scales are bit by bit those of bitsandbytes on a CPU.
    ///
    /// # Errors
    ///
    /// - [`Error::Setting`] if the block size is none of [`BLOCK_SIZES`], or the matrix has no element.
    /// - [`Error::Length`] if the values do not fill the matrix.
    /// - [`Error::NotFinite`] if a value is a NaN or an infinity.
    /// - [`Error::Overflow`] if the scales are too large for double quantization.
    pub fn quantize(values: &[f32], shape: [usize; 2], options: FourBitOptions) -> Result<Self> {
        let FourBitOptions {
            kind,
            block_size,
            double_quantization,
        } = options;
        check_block_size(block_size)?;
        check_shape(values.len(), shape)?;
        check_finite(values, kind.name())?;
        let table = kind.table();
        let mut codes = vec![0_u8; values.len().div_ceil(2)];
        let scales: Vec<f32> = values
            .par_chunks(block_size)
            .zip(codes.par_chunks_mut(block_size / 2))
            .with_min_len(BLOCKS_A_TASK)
            .map(|(values, codes)| encode(table, values, block_size, codes))
            .collect();
        let scales = if double_quantization {
            Scales::nested(&scales)?
        } else {
            Scales::Plain(scales)
        };
        Ok(Self {
            kind,
            block_size,
            shape,
            codes,
            scales,
            dtype: FloatFormat::Float32,
        })
    }

    /// What the codes stand for.
    pub fn kind(&self) -> FourBitKind {
        self.kind
    }

    /// Elements that share a scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The codes, two to a byte, the first in the high nibble: `[⌈rows · columns / 2⌉]`.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scales of the blocks.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The number format that the weight had, and that upstream turns it back to; `float32` where
    /// it was quantized here. [`decode`](QuantizedMatrix::decode) gives `f32` whatever this says,
    /// without upstream's last rounding.
    pub fn dtype(&self) -> FloatFormat {
        self.dtype
    }

    /// Sets [`dtype`](Self::dtype), for the file that the weight is written to.
    #[must_use]
    pub fn with_dtype(mut self, dtype: FloatFormat) -> Self {
        self.dtype = dtype;
        self
    }

    /// The options that quantize another matrix as this one was.
    pub fn options(&self) -> FourBitOptions {
        FourBitOptions {
            kind: self.kind,
            block_size: self.block_size,
            double_quantization: matches!(self.scales, Scales::Nested { .. }),
        }
    }

    /// All elements, row-major.
    pub fn to_values(&self) -> Vec<f32> {
        let [rows, columns] = self.shape;
        let mut values = vec![0.0; rows * columns];
        self.decode(0, &mut values);
        values
    }

    /// The elements from `start` on, block by block.
    fn decode_from(&self, start: usize, values: &mut [f32]) {
        let table = self.kind.table();
        let mut at = start;
        let mut rest = values;
        while !rest.is_empty() {
            let block = at / self.block_size;
            let count = ((block + 1) * self.block_size - at).min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            decode_part(table, &self.codes, at, self.scales.get(block), now);
            at += count;
            rest = later;
        }
    }
}

impl QuantizedMatrix for FourBit {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        self.decode_from(first * self.shape[1], values);
    }

    fn packed(&self) -> Option<PackedMatrix> {
        let nibble = |index: usize| (self.codes[index / 2] >> (4 * (1 - index % 2))) & 15;
        let values = self.kind.table().values.to_vec();
        Some(PackedMatrix {
            codes: Codes::new((0..self.shape[0] * self.shape[1]).map(nibble), 4, values),
            block_size: self.block_size,
            scales: self.scales.packed(),
        })
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes()
    }

    fn format(&self) -> &'static str {
        self.kind.name()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Refuses block sizes that bitsandbytes has not.
pub(crate) fn check_block_size(block_size: usize) -> Result<()> {
    if BLOCK_SIZES.contains(&block_size) {
        Ok(())
    } else {
        Err(Error::setting(
            "bnb_4bit_blocksize",
            block_size,
            "a power of two from 32 to 4096",
        ))
    }
}

/// Writes a block's codes and returns its scale.
fn encode(table: &Table, values: &[f32], block_size: usize, codes: &mut [u8]) -> f32 {
    let largest = absolute_maximum(values);
    let divisor = largest.max(LEAST);
    // Upstream multiplies by the inverse in whole blocks, and divides in what is left at the end.
    if values.len() == block_size {
        let inverse = 1.0 / divisor;
        write(table, values, codes, |value| value * inverse);
        largest
    } else {
        write(table, values, codes, |value| value / divisor);
        divisor
    }
}

#[inline]
fn write(table: &Table, values: &[f32], codes: &mut [u8], scaled: impl Fn(f32) -> f32) {
    let code = |value| table.code(scaled(value).clamp(-1.0, 1.0));
    let (pairs, last) = values.as_chunks::<2>();
    for (&[first, second], byte) in pairs.iter().zip(codes.iter_mut()) {
        *byte = (code(first) << 4) | code(second);
    }
    if let ([value], Some(byte)) = (last, codes.last_mut()) {
        *byte = (code(*value) << 4) | table.code(0.0);
    }
}

/// Decodes elements of one block, from element `at` of the matrix on.
#[inline]
fn decode_part(table: &Table, codes: &[u8], at: usize, scale: f32, values: &mut [f32]) {
    let (first, values) = values.split_at_mut(at % 2);
    if let [first] = first {
        *first = table.pairs[usize::from(codes[at / 2])][1] * scale;
    }
    let (pairs, last) = values.as_chunks_mut::<2>();
    let codes = &codes[at.div_ceil(2)..];
    for (pair, code) in pairs.iter_mut().zip(codes) {
        let [first, second] = table.pairs[usize::from(*code)];
        *pair = [first * scale, second * scale];
    }
    if let [last] = last {
        *last = table.pairs[usize::from(codes[pairs.len()])][0] * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> FourBitOptions {
        FourBitOptions::new(FourBitKind::Nf4)
    }

    #[test]
    fn what_cannot_be_quantized_is_refused() {
        let zeros = [0.0; 12];
        let refused = |shape, options| FourBit::quantize(&zeros, shape, options).unwrap_err();
        assert!(matches!(
            refused([3, 5], options()),
            Error::Length { values: 12, .. }
        ));
        assert!(matches!(
            refused([usize::MAX, 2], options()),
            Error::Length { .. }
        ));
        for block_size in [0, 16, 48, 8192] {
            let options = options().with_block_size(block_size);
            assert!(matches!(refused([3, 4], options), Error::Setting { .. }));
        }
        let empty = FourBit::quantize(&[], [0, 4], options());
        assert!(matches!(empty.unwrap_err(), Error::Setting { .. }));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let refused = FourBit::quantize(&[0.0, value], [1, 2], options()).unwrap_err();
            assert!(matches!(refused, Error::NotFinite { index: 1, .. }));
        }
    }

    #[test]
    fn zeros_and_extremes_come_back() {
        for kind in [FourBitKind::Nf4, FourBitKind::Fp4] {
            for on in [false, true] {
                let options = FourBitOptions::new(kind).with_double_quantization(on);
                let zeros = FourBit::quantize(&[0.0; 100], [4, 25], options).unwrap();
                assert!(zeros.to_values().iter().all(|value| value.abs() < 1e-37));
            }
            let mut values = vec![1e-42; 64];
            values.extend([f32::MAX, -f32::MAX]);
            let matrix = FourBit::quantize(&values, [2, 33], FourBitOptions::new(kind)).unwrap();
            let again = matrix.to_values();
            assert!(again.iter().all(|value| value.is_finite()));
            let ends = [again[64], again[65]].map(f32::to_bits);
            assert_eq!(ends, [f32::MAX, -f32::MAX].map(f32::to_bits));
        }
        let huge = [f32::MAX; 1024];
        let nested = options().with_double_quantization(true);
        let refused = FourBit::quantize(&huge, [8, 128], nested).unwrap_err();
        assert!(matches!(refused, Error::Overflow { .. }));
    }

    #[test]
    fn double_quantization_costs_an_eighth_of_a_bit() {
        let values: Vec<f32> = (0..576 * 1536)
            .map(|index| (index as f32 * 0.37).sin() * 0.05)
            .collect();
        let bits = |on| {
            let options = options().with_double_quantization(on);
            let matrix = FourBit::quantize(&values, [576, 1536], options).unwrap();
            matrix.bytes() as f64 * 8.0 / values.len() as f64
        };
        assert!(bits(true) <= 4.13, "{}", bits(true));
        assert!((bits(false) - 4.5).abs() < 1e-9, "{}", bits(false));
    }
}

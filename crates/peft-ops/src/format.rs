//! Storage formats of few bits, and how devices decode them.

use std::fmt::Debug;

/// A frozen matrix in a storage format of its own, decoded row by row when it is needed.
///
/// Rows are what upstream's are: the outputs of a linear layer (`[out, in]`, the transpose of Burn's
/// weight), the tokens of an embedding table (`[vocabulary, d]`).
pub trait QuantizedMatrix: Debug + Send + Sync + 'static {
    /// `[rows, columns]`.
    fn shape(&self) -> [usize; 2];

    /// Writes the rows from `first` on; `values.len()` is a multiple of the number of columns and ends within
    /// the matrix. Called by many threads at a time.
    fn decode(&self, first: usize, values: &mut [f32]);

    /// The bits of all numbers in bfloat16, row-major, if that is how they are stored: products in
    /// [mixed precision](crate::MixedPrecision) read them as they are.
    fn bfloat16(&self) -> Option<&[u16]> {
        None
    }

    /// Codes and scales, if a GPU can decode the format: they are copied to the device once and decoded there. The
    /// others are decoded here, whenever they are used.
    fn packed(&self) -> Option<PackedMatrix> {
        None
    }

    /// Bytes in memory, constants and scales included.
    fn bytes(&self) -> usize;

    /// Name of the format, as in `nf4`.
    fn format(&self) -> &str;

    /// For those who know the formats and want theirs back.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// Codes of a few bits, row-major in 32-bit words, and what each code stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    words: Vec<u32>,
    bits: u32,
    values: Vec<f32>,
    len: usize,
}

impl Codes {
    /// Packs codes of `bits` bits; `values` has one value for each code there can be.
    ///
    /// # Panics
    ///
    /// If `bits` is neither 4 nor 8, or `values` does not hold `2^bits` values.
    pub fn new(codes: impl ExactSizeIterator<Item = u8>, bits: u32, values: Vec<f32>) -> Self {
        assert!(bits == 4 || bits == 8, "codes of {bits} bits");
        assert_eq!(values.len(), 1 << bits, "one value for each code");
        let per_word = (32 / bits) as usize;
        let len = codes.len();
        let mut words = vec![0_u32; len.div_ceil(per_word)];
        for (index, code) in codes.enumerate() {
            words[index / per_word] |= u32::from(code) << (bits as usize * (index % per_word));
        }
        Self {
            words,
            bits,
            values,
            len,
        }
    }

    /// 32 / `bits` codes each, the first in the lowest bits.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// 4 or 8.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// What the codes stand for, `[2^bits]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Number of codes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no code.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The scales of blocks of codes.
#[derive(Clone, Debug, PartialEq)]
pub enum BlockScales {
    /// One number for every block.
    Plain(Vec<f32>),
    /// Quantized themselves: a scale is the value of its code times its block's factor, plus the offset.
    Nested {
        /// One code for every block.
        codes: Codes,
        /// Codes that share a factor.
        block_size: usize,
        /// One for every block of codes.
        factors: Vec<f32>,
        /// The same for all.
        offset: f32,
    },
}

/// A matrix as a device decodes it: an element is the value of its code times the scale of its block.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedMatrix {
    /// One for every element, row-major.
    pub codes: Codes,
    /// Elements that share a scale. Blocks run on over the ends of rows.
    pub block_size: usize,
    /// One for every block.
    pub scales: BlockScales,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_code_is_in_the_lowest_bits() {
        let values = vec![0.0; 16];
        let codes = Codes::new([1, 2, 3, 4, 5, 6, 7, 8, 15].into_iter(), 4, values);
        assert_eq!(codes.words(), [0x8765_4321, 0xf]);
        assert_eq!(codes.len(), 9);
        let codes = Codes::new([0xfe, 1].into_iter(), 8, vec![0.0; 256]);
        assert_eq!(codes.words(), [0x01fe]);
    }
}

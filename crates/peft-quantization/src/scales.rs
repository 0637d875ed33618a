//! Absolute maxima of blocks, as floats or quantized themselves.

use crate::dynamic::{dynamic_code, dynamic_map, mean};
use crate::{Error, Result};
use peft_ops::quantized::{BlockScales, Codes};

/// Blocks that share a scale in the second quantization.
pub const NESTED_BLOCK: usize = 256;

/// The scale of every block: its absolute maximum.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// 32 bits each, `[blocks]`.
    Plain(Vec<f32>),
    /// Double quantization (QLoRA, section 3): 8 bits each, and a float for every 256.
    Nested {
        /// Codes in the dynamic map, `[blocks]`.
        codes: Vec<u8>,
        /// Largest distance from the offset in every 256 blocks, `[⌈blocks / 256⌉]`.
        absmax: Vec<f32>,
        /// Mean of all absolute maxima, which is taken off before and put back after.
        offset: f32,
    },
}

impl Scales {
    /// Double quantization of absolute maxima, as bitsandbytes does it on the CPU.
    pub(crate) fn nested(plain: &[f32]) -> Result<Self> {
        let offset = mean(plain);
        let rest: Vec<f32> = plain.iter().map(|scale| scale - offset).collect();
        let absmax: Vec<f32> = rest.chunks(NESTED_BLOCK).map(absolute_maximum).collect();
        if !absmax.iter().all(|largest| (offset + largest).is_finite()) {
            return Err(Error::Overflow {
                largest: absolute_maximum(plain),
            });
        }
        let mut codes = Vec::with_capacity(rest.len());
        for (block, largest) in rest.chunks(NESTED_BLOCK).zip(&absmax) {
            if *largest > 0.0 {
                let inverse = 1.0 / *largest;
                codes.extend(block.iter().map(|value| dynamic_code(value * inverse)));
            } else {
                codes.extend(block.iter().map(|_| 0));
            }
        }
        Ok(Self::Nested {
            codes,
            absmax,
            offset,
        })
    }

    /// As a GPU decodes them.
    pub(crate) fn packed(&self) -> BlockScales {
        match self {
            Self::Plain(scales) => BlockScales::Plain(scales.clone()),
            Self::Nested {
                codes,
                absmax,
                offset,
            } => BlockScales::Nested {
                codes: Codes::new(codes.iter().copied(), 8, dynamic_map().to_vec()),
                block_size: NESTED_BLOCK,
                factors: absmax.clone(),
                offset: *offset,
            },
        }
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(scales) => scales.len(),
            Self::Nested { codes, .. } => codes.len(),
        }
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scale of one block.
    ///
    /// # Panics
    ///
    /// If there is no such block.
    #[inline]
    pub fn get(&self, block: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[block],
            Self::Nested {
                codes,
                absmax,
                offset,
            } => {
                let value = dynamic_map()[usize::from(codes[block])];
                value * absmax[block / NESTED_BLOCK] + offset
            }
        }
    }

    /// Bytes in memory; tables that are the same for all matrices are not counted.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain(scales) => size_of_val(scales.as_slice()),
            Self::Nested { codes, absmax, .. } => {
                codes.len() + size_of_val(absmax.as_slice()) + size_of::<f32>()
            }
        }
    }
}

/// The largest magnitude of a block.
pub(crate) fn absolute_maximum(values: &[f32]) -> f32 {
    values
        .iter()
        .fold(0.0, |largest, value| value.abs().max(largest))
}

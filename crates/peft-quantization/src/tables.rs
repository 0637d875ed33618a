//! The two tables of 16 values: what a 4-bit code stands for, and which code a value gets.

use peft_reparameterization::NF4_VALUES;
use serde::{Deserialize, Serialize};

/// The meaning of a 4-bit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FourBitKind {
    /// NormalFloat: quantiles of the normal distribution, zero among them (QLoRA, section 3).
    Nf4,
    /// A float with two bits of exponent and one of mantissa.
    Fp4,
}

impl FourBitKind {
    /// Name, as bitsandbytes has it: `nf4` or `fp4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The value of each code, in [-1, 1].
    pub fn values(self) -> &'static [f32; 16] {
        &self.table().values
    }

    /// Largest distance between two neighbouring values: twice the largest error, as a share of a block's
    /// absolute maximum.
    pub fn largest_gap(self) -> f32 {
        let Table { values, order, .. } = self.table();
        order
            .windows(2)
            .map(|pair| values[usize::from(pair[1])] - values[usize::from(pair[0])])
            .fold(0.0, f32::max)
    }

    pub(crate) fn table(self) -> &'static Table {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }
}

impl std::fmt::Display for FourBitKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Both directions of a 4-bit code.
#[derive(Debug)]
pub(crate) struct Table {
    /// By code.
    pub(crate) values: [f32; 16],
    /// Codes from the smallest value to the largest.
    order: [u8; 16],
    /// Halfway between neighbours in that order.
    bounds: [f32; 15],
    /// The values of a byte's two codes, high nibble first.
    pub(crate) pairs: [[f32; 2]; 256],
}

impl Table {
    const fn new(values: [f32; 16], order: [u8; 16]) -> Self {
        let mut bounds = [0.0; 15];
        let mut index = 0;
        while index < 15 {
            let [low, high] = [order[index] as usize, order[index + 1] as usize];
            bounds[index] = f32::midpoint(values[low], values[high]);
            index += 1;
        }
        let mut pairs = [[0.0; 2]; 256];
        let mut byte = 0;
        while byte < 256 {
            pairs[byte] = [values[byte >> 4], values[byte & 15]];
            byte += 1;
        }
        Self {
            values,
            order,
            bounds,
            pairs,
        }
    }

    /// The code of a value in [-1, 1]; halfway, that of the smaller neighbour.
    #[inline]
    pub(crate) fn code(&self, value: f32) -> u8 {
        let below: u8 = self
            .bounds
            .iter()
            .map(|bound| u8::from(*bound < value))
            .sum();
        self.order[usize::from(below)]
    }
}

static NF4: Table = Table::new(
    NF4_VALUES,
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
);

// Codes 0 and 8 are both zero: the first for what is not positive.
static FP4: Table = Table::new(
    [
        0.0,
        0.0625 / 12.0,
        8.0 / 12.0,
        1.0,
        4.0 / 12.0,
        6.0 / 12.0,
        2.0 / 12.0,
        3.0 / 12.0,
        0.0,
        -0.0625 / 12.0,
        -8.0 / 12.0,
        -1.0,
        -4.0 / 12.0,
        -6.0 / 12.0,
        -2.0 / 12.0,
        -3.0 / 12.0,
    ],
    [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_the_code_it_stands_for() {
        for kind in [FourBitKind::Nf4, FourBitKind::Fp4] {
            let table = kind.table();
            for (code, value) in table.values.iter().enumerate() {
                // FP4 has two zeros, of which the first is written.
                let expected = if kind == FourBitKind::Fp4 && code == 8 {
                    0
                } else {
                    code
                };
                assert_eq!(usize::from(table.code(*value)), expected, "{kind} {value}");
            }
            for pair in table.order.windows(2) {
                let [low, high] = [pair[0], pair[1]].map(|code| table.values[usize::from(code)]);
                assert!(low <= high, "{kind}: {low} before {high}");
            }
        }
    }

    #[test]
    fn halfway_is_rounded_down() {
        for kind in [FourBitKind::Nf4, FourBitKind::Fp4] {
            let table = kind.table();
            for (index, bound) in table.bounds.iter().enumerate() {
                let [low, high] = [table.order[index], table.order[index + 1]];
                assert_eq!(table.code(*bound), low, "{kind} {bound}");
                assert_eq!(table.code(bound.next_up()), high, "{kind} {bound}");
            }
        }
    }
}

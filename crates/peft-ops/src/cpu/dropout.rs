//! Dropout without a mask in memory: whether an element is dropped is a function of the seed and its index.

use super::buffers::change_rows;
use super::math::{coin, vectors};

/// Which elements are dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coins {
    /// The forward and the backward pass use the same.
    pub(crate) seed: u64,
    /// An element is dropped where its coin is below this.
    threshold: u32,
    /// What the others are multiplied by: 1 / (1 − p).
    keep: f32,
}

impl Coins {
    /// Drops a share of `probability`, in [0, 1).
    pub(crate) fn new(probability: f64, seed: u64) -> Self {
        Self {
            seed,
            threshold: (probability * 2.0_f64.powi(32)) as u32,
            keep: (1.0 / (1.0 - probability)) as f32,
        }
    }

    /// What element `index` is multiplied by.
    #[inline(always)]
    pub(crate) fn factor(self, index: usize) -> f32 {
        if coin(self.seed, index) < self.threshold {
            0.0
        } else {
            self.keep
        }
    }
}

/// Multiplies every element by its factor.
pub(crate) fn in_place(data: &mut [f32], coins: Coins) {
    change_rows(data, 1, |first, part| {
        vectors(
            #[inline(always)]
            |_| {
                for (i, value) in part.iter_mut().enumerate() {
                    *value *= coins.factor(first + i);
                }
            },
        );
    });
}

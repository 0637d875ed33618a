//! How long to train, and at which learning rate.

use serde::{Deserialize, Serialize};

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Length {
    /// That many steps of the optimizer, over the data as often as it takes.
    Steps(usize),
    /// That many times over the data.
    Epochs(usize),
}

/// How the learning rate falls after the warmup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Schedule {
    /// It does not.
    Constant,
    /// In a straight line.
    #[default]
    Linear,
    /// Along half a cosine (Loshchilov and Hutter 2017, SGDR, eq. 5, without restarts).
    Cosine,
}

/// Steps over which the learning rate rises from 0 in a straight line: fewer than the run has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Warmup {
    /// Their number.
    Steps(usize),
    /// Their share of all steps, in [0, 1); rounded up.
    Ratio(f64),
}

impl Warmup {
    /// Their number in a run of `of` steps.
    pub(crate) fn steps(self, of: usize) -> usize {
        match self {
            Self::Steps(steps) => steps,
            Self::Ratio(ratio) => (of as f64 * ratio).ceil() as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_warmup_is_rounded_up() {
        assert_eq!(Warmup::Ratio(0.03).steps(50), 2);
        assert_eq!(Warmup::Ratio(0.0).steps(50), 0);
    }
}

//! What a gain allows to say.

use serde::Serialize;

use super::MIN_SEEDS;
use crate::statistics::Estimate;

/// Whether a method beats the baseline method: head-only, or the untrained language model.
#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is the baseline method.
    Reference,
    /// The interval of the gain is above zero.
    Beats,
    /// The interval of the gain includes zero.
    NotShown,
    /// The interval of the gain is below zero.
    Worse,
    /// Fewer than [`MIN_SEEDS`] seeds.
    TooFewSeeds,
    /// There is no run of the baseline method to compare with, or a seed diverged.
    Unknown,
}

impl Verdict {
    pub(super) fn new(is_baseline: bool, gain: Option<Estimate>) -> Self {
        match gain {
            _ if is_baseline => Self::Reference,
            None => Self::Unknown,
            Some(gain) if gain.n < MIN_SEEDS => Self::TooFewSeeds,
            Some(gain) if gain.lower() > 0.0 => Self::Beats,
            Some(gain) if gain.upper() < 0.0 => Self::Worse,
            Some(_) => Self::NotShown,
        }
    }
}

#![doc = include_str!("../README.md")]

mod bitfit;
mod ln_tuning;
mod mask;
mod partial;
mod reference;
mod selection;
mod shira;
mod sparse;
mod trainable_tokens;
mod upstream;

use peft_core::method::MethodInfo;

pub use bitfit::{BITFIT, BiasDelta, BitFitConfig};
pub use ln_tuning::{LN_TUNING, LnTuningConfig};
pub use mask::{MaskContext, MaskFn, largest};
pub use partial::{PARTIAL, Part, PartialConfig};
pub use reference::{FULL, FullConfig, HEAD_ONLY, HeadOnlyConfig};
pub use selection::{Criterion, LayerChoice, LayerScores, LayerSelection};
pub use shira::{SHIRA, ShiraConfig};
pub use sparse::SparseDelta;
pub use trainable_tokens::{TRAINABLE_TOKENS, TrainableTokensConfig};

/// The methods of this crate, references included.
pub const METHODS: &[&MethodInfo] = &[
    &BITFIT,
    &LN_TUNING,
    &PARTIAL,
    &TRAINABLE_TOKENS,
    &SHIRA,
    &HEAD_ONLY,
    &FULL,
];

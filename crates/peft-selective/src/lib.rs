#![doc = include_str!("../README.md")]

mod bitfit;
mod dense_first;
mod diff_pruning;
mod elements;
mod far;
mod fish_mask;
mod ln_tuning;
mod low_rank;
mod lt_sft;
mod mask;
mod partial;
mod ranking;
mod reference;
mod selection;
mod shira;
mod spt;
mod supertuning;
mod trainable_tokens;
mod upstream;

use peft_core::method::MethodInfo;
pub use peft_core::method::SparseDelta;

pub use bitfit::{BITFIT, BiasDelta, BitFitConfig};
pub use dense_first::DenseFirst;
pub use diff_pruning::{DIFF_PRUNING, DiffPruned, DiffPruningConfig};
pub use far::{FAR, FarConfig};
pub use fish_mask::{FISH_MASK, FishMaskConfig, drawn_labels};
pub use ln_tuning::{LN_TUNING, LnTuningConfig};
pub use low_rank::LowRankChange;
pub use lt_sft::{LT_SFT, LtSftConfig};
pub use mask::{MaskContext, MaskFn, largest};
pub use partial::{PARTIAL, Part, PartialConfig};
pub use reference::{FULL, FullConfig, HEAD_ONLY, HeadOnlyConfig};
pub use selection::{Criterion, LayerChoice, LayerScores, LayerSelection};
pub use shira::{SHIRA, ShiraConfig};
pub use spt::{SPT, SptConfig};
pub use supertuning::{SUPERTUNING, SuperTuning, SuperTuningConfig};
pub use trainable_tokens::{TRAINABLE_TOKENS, TrainableTokensConfig};

/// The methods of this crate, references included.
pub const METHODS: &[&MethodInfo] = &[
    &BITFIT,
    &LN_TUNING,
    &PARTIAL,
    &TRAINABLE_TOKENS,
    &SHIRA,
    &SUPERTUNING,
    &FISH_MASK,
    &SPT,
    &LT_SFT,
    &FAR,
    &DIFF_PRUNING,
    &HEAD_ONLY,
    &FULL,
];

//! A change of low rank, beside or in the place of a sparse one.

use burn::nn::Dropout;
use peft_core::method::prelude::*;

/// Keys of A and B below the layer.
pub(crate) const DOWN: &str = "lora_A.weight";
pub(crate) const UP: &str = "lora_B.weight";

/// `W' = W + s·A B`, with dropout on A's input.
#[derive(Module, Debug)]
pub struct LowRankChange {
    /// A, `[in, r]`.
    pub down: Param<Tensor<2>>,
    /// B, `[r, out]`.
    pub up: Param<Tensor<2>>,
    /// On A's input; on the activation side only.
    pub dropout: Dropout,
    /// s.
    pub scale: f64,
}

impl LowRankChange {
    /// A, B and s.
    pub(crate) fn change(&self) -> LowRank {
        LowRank::new(self.down.val(), self.up.val(), self.scale)
    }
}

impl Adapter for LowRankChange {
    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![
            CheckpointKey::layer("down", DOWN).transposed(),
            CheckpointKey::layer("up", UP).transposed(),
        ]
    }
}

impl LowRankAdapter for LowRankChange {
    fn factors(&self) -> LowRank {
        self.change()
    }

    fn dropout(&self) -> Option<&Dropout> {
        Some(&self.dropout)
    }
}

//! What the memory of a training step is made of, computed from shapes.

use serde::{Deserialize, Serialize};

/// Bytes at the peak of a training step, over what the process needs without a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    /// Parameters of the model and the adapters.
    pub(crate) weights: u64,
    /// Gradients of what is trained.
    pub(crate) gradients: u64,
    /// AdamW's two moments of what is trained.
    pub(crate) optimizer: u64,
    /// What the forward pass keeps for the backward pass.
    pub(crate) activations: u64,
    /// The largest tensors that live for a moment only.
    pub(crate) workspace: u64,
}

impl Account {
    /// All of it.
    pub(crate) fn total(&self) -> u64 {
        let Self {
            weights,
            gradients,
            optimizer,
            activations,
            workspace,
        } = self;
        weights + gradients + optimizer + activations + workspace
    }
}

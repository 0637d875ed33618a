//! Whether an adapter is left out of a forward pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Tensor;

/// Whether an adapter is left out. Copies of a state share what a training has drawn for a step, until that step is done
/// or the training's hooks are dropped.
#[derive(Clone, Debug, Default)]
pub struct Skip {
    /// In every forward pass.
    pub(crate) always: bool,
    /// In forward passes with autodiff. The training's hooks hold it, too, and clear it.
    pub(crate) while_training: Arc<AtomicBool>,
}

impl Skip {
    pub(crate) fn is_on(&self, hidden: &Tensor<3>) -> bool {
        self.always || (hidden.is_autodiff() && self.while_training.load(Ordering::Relaxed))
    }
}

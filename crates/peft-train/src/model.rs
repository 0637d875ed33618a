//! What a model must do to be trained.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::PeftModule;
use peft_models::LmBatch;

/// What a model can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a row at most, without virtual tokens.
    pub positions: usize,
    /// Number of tokens that it knows: ids and targets are below.
    pub vocabulary: usize,
}

/// A causal language model that [`Trainer`](crate::Trainer) can train.
///
/// Losses are *sums* over the targets, not means: batches differ in how many targets they have, and
/// only sums add up over the micro-batches of a step.
pub trait CausalLm: PeftModule {
    /// Sum of the negative log likelihoods (nats) of the batch's targets, `[1]`. A target of -100 counts
    /// nothing.
    fn nll(&self, batch: &LmBatch) -> Tensor<1>;

    /// What the model can read. Data beyond it are refused before they are used. Default: nothing is known,
    /// nothing is refused.
    fn limits(&self) -> Option<Limits> {
        None
    }

    /// Logits `[rows · length, vocabulary]` of what follows each token of the batch. Default: the model gives none, and
    /// [`TrainConfig::consistency_weight`](crate::TrainConfig::consistency_weight) is refused.
    fn logits(&self, _batch: &LmBatch) -> Option<Tensor<2>> {
        None
    }

    /// Whether [`logits`](Self::logits) gives some. Default: no.
    fn has_logits(&self) -> bool {
        false
    }

    /// Whether [`nll_gradients`](Self::nll_gradients) computes activations again if asked to. Default: it
    /// does not, and [`TrainConfig::gradient_checkpointing`](crate::TrainConfig::gradient_checkpointing) is
    /// refused.
    fn has_checkpointing(&self) -> bool {
        false
    }

    /// The sum, and the gradients of `scale` times the sum, with each layer's activations computed again
    /// in the backward pass if `checkpointing`, which is asked of models that
    /// [can](Self::has_checkpointing) only.
    ///
    /// The default takes one backward pass over [`nll`](Self::nll).
    fn nll_gradients(
        &self,
        batch: &LmBatch,
        checkpointing: bool,
        scale: f64,
    ) -> (f64, GradientsParams) {
        let _ = checkpointing;
        let nll = self.nll(batch);
        let value = f64::from(nll.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads((nll * scale).backward(), self);
        (value, gradients)
    }
}

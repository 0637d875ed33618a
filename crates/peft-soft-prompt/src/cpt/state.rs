//! What CPT puts in front of the input.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use peft_core::method::{Adapter, CheckpointKey, PromptAdapter};

/// The context's virtual tokens.
#[derive(Module, Debug)]
pub struct ContextPrompt {
    /// The tokens, or what they are computed from.
    pub form: ContextForm,
    /// What is known of each token.
    #[module(skip)]
    pub(super) tokens: Arc<[ContextToken]>,
}

/// The virtual tokens, or what they are computed from while they are trained.
#[derive(Module, Debug)]
pub enum ContextForm {
    /// The virtual tokens' embeddings, `[virtual_tokens, d]`: what a file holds.
    Prompt(Param<Tensor<2>>),
    /// What they are computed from in training.
    Moved(MovedContext),
}

/// The embeddings of a context's tokens, and how far each is moved from there.
#[derive(Module, Debug)]
pub struct MovedContext {
    /// The embeddings, `[virtual_tokens, d]`; not trained.
    pub embeddings: Param<Tensor<2>>,
    /// The change of each, `[virtual_tokens, d]`.
    pub delta: Param<Tensor<2>>,
}

/// One token of the context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ContextToken {
    /// Whether it is trained.
    pub(super) trained: bool,
    /// The largest norm of its change.
    pub(super) radius: f32,
}

impl ContextPrompt {
    /// One number for each token, `[virtual_tokens, 1]`.
    fn column(&self, of: impl Fn(&ContextToken) -> f32, like: (&Device, DType)) -> Tensor<2> {
        let values: Vec<f32> = self.tokens.iter().map(of).collect();
        Tensor::from_data(TensorData::new(values, [self.tokens.len(), 1]), like)
    }

    /// A value that depends on the tokens that are trained only.
    fn of_trained(&self, value: Tensor<2>) -> Tensor<2> {
        if self.tokens.iter().all(|token| token.trained) {
            return value;
        }
        let like = (&value.device(), value.dtype());
        let trained = self.column(|token| f32::from(u8::from(token.trained)), like);
        let moving = value.clone() * trained;
        // The number itself is the value's, whatever rounding does; the gradient is the masked one.
        value.detach() + (moving.clone() - moving.detach())
    }

    /// Changes within their balls: what is longer is shortened. Without a gradient.
    fn within_balls(&self, delta: Tensor<2>) -> Tensor<2> {
        let delta = delta.detach();
        let wide = delta.clone().cast(DType::F32);
        let norms = wide.square().sum_dim(1).sqrt();
        let radii = self.column(|token| token.radius, (&norms.device(), DType::F32));
        let outside = norms.clone().greater(radii.clone());
        let factors = norms.ones_like().mask_where(outside, radii / norms);
        delta.clone() * factors.cast(delta.dtype())
    }

    /// Shortens the changes that have left their balls: after each step of the optimizer.
    pub(super) fn project(&mut self) {
        let tokens = self.clone();
        let ContextForm::Moved(moved) = &mut self.form else {
            return;
        };
        moved.delta = moved.delta.clone().map(|delta| {
            let trained = delta.is_require_grad();
            // A new leaf, which remembers no graph.
            let delta = tokens.within_balls(delta).detach();
            delta.set_require_grad(trained)
        });
    }
}

impl Adapter for ContextPrompt {
    fn tensors(&self) -> Vec<CheckpointKey> {
        match &self.form {
            ContextForm::Prompt(_) => {
                vec![CheckpointKey::root("form.Prompt", "prompt_embeddings")]
            }
            ContextForm::Moved(_) => vec![
                CheckpointKey::root("form.Moved.embeddings", "prompt_encoder.embedding.weight"),
                CheckpointKey::root("form.Moved.delta", "prompt_encoder.delta_embedding.weight"),
            ],
        }
    }

    fn for_checkpoint(&self) -> Self {
        Self {
            form: ContextForm::Prompt(Param::from_tensor(self.valid().prompt())),
            tokens: self.tokens.clone(),
        }
    }
}

impl PromptAdapter for ContextPrompt {
    fn virtual_tokens(&self) -> usize {
        self.tokens.len()
    }

    fn prompt(&self) -> Tensor<2> {
        match &self.form {
            ContextForm::Prompt(embeddings) => self.of_trained(embeddings.val()),
            ContextForm::Moved(moved) => {
                let delta = moved.delta.val();
                // The projection counts as constant: upstream writes its result into the parameter before it is used.
                let change = self.within_balls(delta.clone());
                let gradient = self.of_trained(delta.clone()) - delta.detach();
                moved.embeddings.val() + change + gradient
            }
        }
    }
}

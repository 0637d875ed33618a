//! What the memory of a training step is made of, computed from shapes.

mod decoder;

pub(crate) use decoder::Decoder;

use serde::{Deserialize, Serialize};

use crate::case::Method;

/// Bytes of an `f32`.
const FLOAT: u64 = 4;

/// Live bytes in a training step, part by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryModel {
    /// Parameters of the model and the adapters.
    pub(crate) weights: u64,
    /// Gradients of what is trained. They come while activations go.
    pub(crate) gradients: u64,
    /// AdamW's two moments of what is trained.
    pub(crate) optimizer: u64,
    /// What the forward pass keeps for the backward pass.
    pub(crate) activations: u64,
    /// The largest tensors that live for a moment only, in the forward or backward pass.
    pub(crate) workspace: u64,
    /// The same in the optimizer's step, when all gradients are there: AdamW's new value of the largest
    /// trained tensor.
    pub(crate) step: u64,
    /// The most that is live while the model is loaded, where that can be more than a step: a table in
    /// `f32`, beside its packed form.
    pub(crate) loading: u64,
}

impl MemoryModel {
    /// The most that is live at one time: when the backward pass begins, when the optimizer has all
    /// gradients, or while the model is loaded.
    pub(crate) fn peak(&self) -> u64 {
        let passes = self.activations + self.workspace;
        let step = self.weights + self.optimizer + passes.max(self.gradients + self.step);
        step.max(self.loading)
    }
}

/// Sizes of a linear layer whose input has a gradient, and of its input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    pub(crate) width: u64,
    pub(crate) tokens: u64,
    /// Elements of the largest trained tensor, and of all.
    pub(crate) largest: u64,
    pub(crate) trainable: u64,
}

impl Layer {
    /// The memory model of a training step with the fused operations: input and output are kept, and the
    /// gradients of both come beside them.
    pub(crate) fn memory_model(self, method: Method) -> MemoryModel {
        let frozen = match method {
            Method::Full => 0,
            _ => self.width * self.width,
        };
        let state = self.tokens * self.width * FLOAT;
        MemoryModel {
            weights: (frozen + self.trainable) * FLOAT,
            gradients: self.trainable * FLOAT,
            optimizer: 2 * self.trainable * FLOAT,
            activations: 2 * state,
            workspace: 2 * state,
            step: self.largest * FLOAT + state,
            loading: 0,
        }
    }
}

/// Sizes of a BERT encoder and its input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoder {
    /// Blocks, from the lowest one on that is trained or adapted.
    pub(crate) layers: u64,
    pub(crate) width: u64,
    /// Rows times tokens, virtual ones included.
    pub(crate) tokens: u64,
    /// Elements of everything, and of what is trained.
    pub(crate) total: u64,
    pub(crate) trainable: u64,
    /// Elements of the largest trained tensor.
    pub(crate) largest: u64,
}

impl Encoder {
    /// The memory model of a training step of `method` with the fused operations.
    ///
    /// In hidden states of `tokens x width`, a layer keeps: queries, keys and values (3), what either
    /// normalisation normalises (1 each), and the feed-forward part before its activation (4, as that is
    /// four times as wide). A linear layer that is trained or adapted keeps its input too, which queries,
    /// keys and values share, and which is there already for the second feed-forward layer. What comes
    /// before the first trained parameter keeps nothing.
    pub(crate) fn memory_model(self, method: Method) -> MemoryModel {
        let state = self.tokens * self.width * FLOAT;
        // Of every layer, and what the first one keeps less.
        let (inputs, first) = match method {
            Method::LoraQv => (1, 0),
            // Of queries, keys and values; of the projection after attention; of the feed-forward part.
            Method::LoraAll | Method::Full => (3, 0),
            _ if method.last_blocks().is_some() => (3, 0),
            // Of both bottlenecks; the attention of the first layer has nothing to train before it.
            Method::Houlsby => (2, 3),
            _ => (0, 0),
        };
        // Gradients of the feed-forward part and of its output; where that part's activation is the input
        // of something trained, it is computed again.
        let all = matches!(method, Method::LoraAll | Method::Full);
        let moment = if all || method.last_blocks().is_some() {
            9
        } else {
            5
        };
        let (kept, moment) = match method {
            // The feed-forward part, its activation in blocks of a quarter for each of two threads, its
            // input and output.
            Method::Head => (0, 8),
            // The embeddings are tracked, and so their norm.
            Method::Prompt | Method::Full => (self.layers * (9 + inputs) + 1, moment),
            _ => (self.layers * (9 + inputs) - first, moment),
        };
        MemoryModel {
            weights: self.total * FLOAT,
            gradients: self.trainable * FLOAT,
            optimizer: 2 * self.trainable * FLOAT,
            activations: kept * state,
            workspace: moment * state,
            step: self.largest * FLOAT,
            loading: 0,
        }
    }
}

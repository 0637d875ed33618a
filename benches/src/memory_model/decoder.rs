//! The memory model of a Llama's training step.

use super::{FLOAT, MemoryModel};
use crate::case::{Method, RANK};

/// Logits that the cross entropy has at a time, as `peft-ops` sets it: 16 MiB.
const LOGITS: u64 = 1 << 22;
/// Numbers of a packed matrix that are decoded at a time, as `peft-ops` sets it: 1 MiB.
const PANEL: u64 = 1 << 18;
/// Bytes of a `bfloat16`.
const HALF: u64 = 2;

/// Sizes of a Llama whose head is its table, and of its input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoder {
    pub(crate) layers: u64,
    /// Features of the stream.
    pub(crate) width: u64,
    /// Features of all heads of queries.
    pub(crate) queries: u64,
    /// Features of all heads of keys, and of values.
    pub(crate) keys: u64,
    /// Features inside the feed-forward part.
    pub(crate) inside: u64,
    pub(crate) vocabulary: u64,
    pub(crate) tokens: u64,
    /// Bytes of the model's own weights as they are stored.
    pub(crate) weights: u64,
    /// Elements of what is trained, and of the largest trained tensor.
    pub(crate) trainable: u64,
    pub(crate) largest: u64,
}

impl Decoder {
    /// The memory model of a training step of `method` with the fused operations.
    ///
    /// Without checkpointing the backward pass finds what all layers kept. With it, it finds one hidden
    /// state of each layer, and what the layer at hand keeps. Either way it begins at the head, which has a
    /// block of logits, or, where it is packed, those of a panel of its rows.
    pub(crate) fn memory_model(self, method: Method) -> MemoryModel {
        let full = method == Method::Full;
        let state = self.width * self.tokens * FLOAT;
        let table = self.vocabulary * self.width;
        let layer = self.kept_by_a_layer(method) * self.tokens * FLOAT;
        let (activations, workspace) = if method.checkpointed() {
            // The layer's gradient, its product with the output, and the output.
            let again = layer + self.layer_backward() + 3 * state;
            ((self.layers + 1) * state, self.head(method).max(again))
        } else {
            // Embeddings that nobody trains are not tracked, nor is the first layer's first norm; the last
            // norm keeps its input.
            let first = if full { 0 } else { state };
            // The table's gradient comes with the loss.
            let of_table = if full { table * FLOAT } else { 0 };
            let kept = self.layers * layer - first + state + of_table;
            (kept, self.head(method).max(self.layer_backward()))
        };
        let adapters = if full { 0 } else { self.trainable };
        MemoryModel {
            weights: self.weights + adapters * FLOAT,
            gradients: self.trainable * FLOAT,
            optimizer: 2 * self.trainable * FLOAT,
            activations,
            workspace,
            // The table gets a gradient from the head and one from the embeddings, for a moment both.
            step: self.largest * FLOAT,
            loading: if method.packed() {
                table * (FLOAT + HALF)
            } else {
                0
            },
        }
    }

    /// Numbers that a layer keeps for each token.
    ///
    /// Queries, keys and values keep the stream that they normalise, as gate and up do; attention its queries,
    /// keys and values; the last projection the gate and what it gates. What layers saw of these is computed
    /// again. An adapter's B wants `x A`.
    fn kept_by_a_layer(self, method: Method) -> u64 {
        let always = 2 * self.width + self.queries + 2 * self.keys + 2 * self.inside;
        let adapted = match method {
            Method::Full => 0,
            method if method.all_linear() => 7,
            _ => 2,
        };
        always + adapted * RANK as u64
    }

    /// Bytes that come and go in the backward pass of a layer, at most: of the feed-forward part's last
    /// projection, the gradients of its output and input, and the input; or, when that is gone, the gradient of
    /// the gate, while that of the input becomes what is gated's.
    fn layer_backward(self) -> u64 {
        (self.width + 2 * self.inside) * self.tokens * FLOAT
    }

    /// Bytes of the head when it has a block of logits: these, the block's hidden states and their gradients,
    /// and both for all tokens. A packed one has the logits of all tokens for the rows of a panel, and the panel.
    fn head(self, method: Method) -> u64 {
        if method.packed() {
            let classes = (PANEL / self.width).clamp(1, self.vocabulary);
            let logits = classes * self.tokens;
            return (logits + classes * self.width + 4 * self.tokens * self.width) * FLOAT;
        }
        let most = (LOGITS / self.vocabulary).max(1);
        let block = self.tokens.div_ceil(self.tokens.div_ceil(most));
        (block * self.vocabulary + 2 * (block + self.tokens) * self.width) * FLOAT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SmolLM2-135M at 256 tokens, with 1000 trained elements.
    fn smollm2(weights: u64) -> Decoder {
        Decoder {
            layers: 30,
            width: 576,
            queries: 576,
            keys: 192,
            inside: 1536,
            vocabulary: 49_152,
            tokens: 256,
            weights,
            trainable: 1000,
            largest: 100,
        }
    }

    #[test]
    fn it_is_what_counting_by_hand_gives() {
        // 64 tokens' logits, 64 and 256 hidden states and as many gradients.
        let head = (64 * 49_152 + 2 * 320 * 576) * 4;
        let [qv, all, full, checkpointed] = [
            Method::LoraQv,
            Method::LoraAll,
            Method::Full,
            Method::LoraAllCheckpointed,
        ]
        .map(|method| smollm2(7000).memory_model(method));
        assert_eq!(qv.activations, 30 * 256 * (5184 + 16) * 4);
        assert_eq!(all.activations, 30 * 256 * (5184 + 56) * 4);
        let (stream, table) = (256 * 576 * 4, 49_152 * 576 * 4);
        assert_eq!(
            full.activations,
            30 * 256 * 5184 * 4 + stream + table,
            "all layers, the last norm's input, the gradient of the table"
        );
        assert_eq!(checkpointed.activations, 31 * stream);
        for memory_model in [qv, all, full] {
            assert_eq!(
                (memory_model.gradients, memory_model.optimizer),
                (4000, 8000)
            );
        }
        for memory_model in [qv, all, full, checkpointed] {
            assert_eq!(memory_model.workspace, head);
        }
        // A layer that runs again needs more than a packed head: what it keeps, its last projection's backward
        // pass, and three hidden states.
        let packed = smollm2(7000).memory_model(Method::QloraAllCheckpointed);
        let again = (5240 + 576 + 2 * 1536 + 3 * 576) * 256 * 4;
        assert_eq!(packed.workspace, again);
        assert_eq!((qv.weights, full.weights), (11_000, 7000));
    }

    #[test]
    fn loading_a_table_counts_where_a_step_needs_less() {
        let memory_model = smollm2(7000).memory_model(Method::QloraAllCheckpointed);
        assert_eq!(memory_model.loading, 49_152 * 576 * 6);
        assert_eq!(memory_model.peak(), memory_model.loading);
        let memory_model = smollm2(800_000_000).memory_model(Method::QloraAll);
        // The logits of all tokens for a panel's rows, the panel, and four hidden states: a little more than a
        // layer's backward pass.
        let head = (455 * 256 + 455 * 576 + 4 * 256 * 576) * 4;
        assert!(head > (576 + 2 * 1536) * 256 * 4);
        assert_eq!(memory_model.workspace, head);
        assert!(memory_model.peak() > 800_000_000 + memory_model.activations);
    }
}

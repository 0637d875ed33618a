//! Reading a text piece by piece, with a cache.

use burn::tensor::{Int, Tensor};
use peft_core::nn::{AdaptedForward as _, ForwardContext};

use super::{KvCache, Llama};

impl Llama {
    /// An empty cache.
    pub fn cache(&self) -> KvCache {
        KvCache::new(self.model.layers.len())
    }

    /// Logits `[batch, vocab_size]` of what follows the last of `ids` `[batch, seq]`, given what is in the
    /// cache, which grows by them. The first call puts virtual tokens and prefixes in front.
    ///
    /// # Panics
    ///
    /// If there are more positions than `max_position_embeddings`.
    pub fn next_logits(&self, ids: Tensor<2, Int>, cache: &mut KvCache) -> Tensor<2> {
        self.next_logits_in(ids, ForwardContext::new(), cache)
    }

    /// As [`next_logits`](Self::next_logits), with what adapters find in the context: the tasks of the rows, say. It is the
    /// same for each piece of a text. Padding is not known here.
    ///
    /// # Panics
    ///
    /// As `next_logits`.
    pub fn next_logits_in(
        &self,
        ids: Tensor<2, Int>,
        context: ForwardContext,
        cache: &mut KvCache,
    ) -> Tensor<2> {
        let rows = ids.dims()[0];
        let (x, context) = self.next_states(ids, context, cache);
        let length = x.dims()[1];
        let context = context.of_last_tokens(1, length);
        let x = x.slice_dim(1, length - 1..length);
        let x = self.leave_stream(x, &context);
        self.logits(x, &context)
            .reshape([rows, self.config.vocab_size])
    }

    /// The hidden states of `ids` `[batch, seq]` that the head would see, given what is in the cache, which grows by them:
    /// `[batch, seq, hidden_size]`, and as [`hidden_in`](Self::hidden_in) with virtual tokens in front in the first call.
    /// A router goes by them ([`TextRouting`](crate::TextRouting)).
    ///
    /// # Panics
    ///
    /// As [`next_logits`](Self::next_logits).
    pub fn next_hidden_in(
        &self,
        ids: Tensor<2, Int>,
        context: ForwardContext,
        cache: &mut KvCache,
    ) -> Tensor<3> {
        let (x, context) = self.next_states(ids, context, cache);
        self.leave_stream(x, &context)
    }

    /// The stream after the last layer, of ids that follow what is in the cache, and what flowed with the pass.
    fn next_states(
        &self,
        ids: Tensor<2, Int>,
        context: ForwardContext,
        cache: &mut KvCache,
    ) -> (Tensor<3>, ForwardContext) {
        let context = context
            .with_cached_tokens(cache.length)
            .with_memory(&cache.memory);
        let (mut x, context) = if cache.is_empty() {
            self.embed(ids, context)
        } else {
            let context = context.with_token_ids(ids.clone()).with_causal();
            let x = self.model.embed_tokens.adapted_in(ids, &context);
            (self.enter_stream(x, &context), context)
        };
        let count = x.dims()[1];
        let first = if cache.is_empty() {
            self.prefix_positions()
        } else {
            cache.length
        };
        let last = first + count;
        let positions = (first..last).collect();
        let mut positions = self.positions((positions, 1), None, context, &x.device());
        for (layer, cache) in self.model.layers.iter().zip(&mut cache.layers) {
            // Those of the text's first part are in the cache.
            if cache.is_empty() {
                (x, positions) = self.before(layer, x, positions);
            }
            x = layer.forward(x, &positions, Some(cache));
        }
        cache.length = last;
        (x, positions.context)
    }
}

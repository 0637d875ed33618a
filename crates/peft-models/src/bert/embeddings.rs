//! Embeddings of tokens, positions and segments: the input of the first layer.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Embedding, LayerNorm};
use burn::tensor::{Device, Int, Tensor};
use peft_core::PromptSite;
use peft_core::nn::{AdaptedForward, ForwardContext, adapted_layer_norm, adapted_positions};

use super::BertConfig;

/// Token, position and segment embeddings, their sum normalised.
#[derive(Module, Debug)]
pub struct BertEmbeddings {
    /// Embeddings of tokens, `[vocab_size, hidden_size]`.
    pub word_embeddings: Embedding,
    /// Embeddings of positions, `[max_position_embeddings, hidden_size]`.
    pub position_embeddings: Embedding,
    /// Embeddings of segments, `[type_vocab_size, hidden_size]`; only row 0 is used.
    pub token_type_embeddings: Embedding,
    /// Normalisation of the sum.
    pub layer_norm: LayerNorm,
    /// Dropout of the normalised sum.
    pub dropout: Dropout,
    /// Where virtual tokens go in front of the word embeddings.
    pub prompt: PromptSite,
    /// Added to the variance.
    epsilon: f64,
}

impl BertEmbeddings {
    pub(super) fn new(config: &BertConfig, device: &Device) -> Self {
        Self {
            word_embeddings: config.embedding(config.vocab_size, device),
            position_embeddings: config.embedding(config.max_position_embeddings, device),
            token_type_embeddings: config.embedding(config.type_vocab_size, device),
            layer_norm: config.norm(device),
            dropout: DropoutConfig::new(config.hidden_dropout_prob).init(),
            prompt: PromptSite::new(config.hidden_size).with_name("word_embeddings"),
            epsilon: config.layer_norm_eps,
        }
    }

    /// Embeddings `[batch, virtual_tokens + seq, hidden_size]` of `ids` `[batch, seq]`, and the context with their
    /// positions and the padding `[batch, seq]` extended to them.
    ///
    /// Virtual tokens take the first positions, after the `first` that belong to prefixes, and the segment 0, as
    /// in HF PEFT.
    ///
    /// # Panics
    ///
    /// If there are more positions than position embeddings.
    pub fn forward(
        &self,
        ids: Tensor<2, Int>,
        context: ForwardContext,
        first: usize,
    ) -> (Tensor<3>, ForwardContext) {
        let device = ids.device();
        let context = context.with_token_ids(ids.clone());
        let words = self.word_embeddings.adapted_in(ids, &context);
        let (words, context) = self.prompt.add_prompt(words, context);
        let context =
            context.with_positions(1, (first..first + words.dims()[1]).collect::<Vec<_>>());
        let last = first + words.dims()[1];
        let most = self.position_embeddings.weight.dims()[0];
        assert!(
            last <= most,
            "{last} positions ({} of them virtual tokens), but the model has embeddings for {most}: \
             truncate the text",
            first + self.prompt.virtual_tokens(),
        );
        // Added to each other first: they are one row per position, and the words a whole batch.
        let positions = first.cast_signed() as i64..last.cast_signed() as i64;
        let positions = Tensor::<1, Int>::arange(positions, &device).unsqueeze::<2>();
        let segments = Tensor::zeros([1, 1], &device);
        let shape = [words.dims()[0], words.dims()[1]];
        let places = adapted_positions(&self.position_embeddings, positions, shape, &context)
            + adapted_positions(&self.token_type_embeddings, segments, shape, &context);
        let sum = (words + places, 0.0);
        let embedded = adapted_layer_norm(&self.layer_norm, self.epsilon, sum, None, &context);
        (self.dropout.adapted(embedded), context)
    }
}

//! What goes into the first layer.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Embedding, LayerNorm};
use burn::tensor::{Bool, Device, Int, Tensor};
use peft_core::nn::AdaptedForward;
use peft_core::ops::layer_norm;
use peft_core::{Site, SiteKind};

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
    pub prompt: Site,
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
            prompt: Site::new(SiteKind::Embeddings, config.hidden_size)
                .with_name("word_embeddings"),
            epsilon: config.layer_norm_eps,
        }
    }

    /// Embeddings `[batch, virtual_tokens + seq, hidden_size]` of `ids` `[batch, seq]`, and the
    /// `padding` `[batch, seq]` extended to them.
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
        padding: Option<Tensor<2, Bool>>,
        first: usize,
    ) -> (Tensor<3>, Option<Tensor<2, Bool>>) {
        let device = ids.device();
        let (words, padding) = self
            .prompt
            .add_prompt(self.word_embeddings.adapted(ids), padding);
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
        let places = self.position_embeddings.adapted(positions)
            + self
                .token_type_embeddings
                .adapted(Tensor::zeros([1, 1], &device));
        let gamma = self.layer_norm.gamma.val();
        let beta = self.layer_norm.beta.as_ref().map(Param::val);
        let embedded = layer_norm(words + places, None, gamma, beta, self.epsilon, 0.0);
        (self.dropout.adapted(embedded), padding)
    }
}

//! What can be wrong with a generation.

use crate::LoadError;

/// Why no text was generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A setting of the configuration is out of range.
    #[error("`{setting}` is {found}, but must be {expected}")]
    Setting {
        /// Name of the field of [`GenerateConfig`](crate::GenerateConfig).
        setting: &'static str,
        /// The value given.
        found: String,
        /// What is possible.
        expected: String,
    },
    /// There is nothing to go on from.
    #[error("the prompt has no tokens, and the model has no `bos_token_id` to begin with")]
    EmptyPrompt,
    /// The prompt alone exceeds what the model can see.
    #[error(
        "the prompt has {tokens} tokens, but must have at most {context}: the model's \
         `max_position_embeddings`, less its virtual tokens"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the model that virtual tokens leave.
        context: usize,
    },
    /// A token of the prompt has no embedding.
    #[error("token {position} of the prompt has id {id}, but the model's `vocab_size` is {vocab}")]
    TokenId {
        /// Its position, from 0.
        position: usize,
        /// Its id.
        id: u32,
        /// Number of embeddings of the model.
        vocab: usize,
    },
    /// The model computes a NaN or an infinity: a training that diverged, or an overflow of a
    /// 16-bit format.
    #[error(
        "the logits behind {tokens} tokens hold {value}; check the weights and the adapters for \
         NaN and infinity"
    )]
    NotFinite {
        /// Tokens of the prompt and generated ones that the logits follow.
        tokens: usize,
        /// The first such value.
        value: f64,
    },
    /// The rows of a batch have adapters of their own, and a text is generated in a batch of one.
    #[error(
        "the model was told the adapters of {rows} rows (`set_adapter_per_row`), but a text is generated alone: \
         call `activate` with its adapter, or `set_adapter_per_row` with one row"
    )]
    Rows {
        /// Number of rows that the model was told of.
        rows: usize,
    },

    /// The model's composition splits the tokens of a text by counts.
    #[error(
        "the model's composition splits the tokens of a text by counts, and a text that is written has no count yet: \
         activate adapters, or compose them otherwise"
    )]
    Tokens,

    /// The model's adapters are composed by weights that a forward pass brings, and generation brings none.
    #[error(
        "the model's adapters are composed by routing (`Composition::Routed`), and generation has no weights for them: \
         give them with `Llama::routed_by`, `activate` adapters, or compose them with fixed weights"
    )]
    Routed,
    /// The weights that were given for the model's adapters do not fit.
    #[error("the routing does not fit: {reason}")]
    Routing {
        /// What does not fit, and what would.
        reason: String,
    },
    /// The tokenizer failed on the prompt or on the tokens generated.
    #[error(transparent)]
    Tokenizer(#[from] LoadError),
}

impl GenerateError {
    pub(super) fn routing(reason: impl Into<String>) -> Self {
        Self::Routing {
            reason: reason.into(),
        }
    }
}

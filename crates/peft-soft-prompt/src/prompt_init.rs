//! What virtual tokens start from.

use serde::{Deserialize, Serialize};

/// Where the virtual tokens start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum PromptInit {
    /// Normal with mean 0 and standard deviation 1, as torch initialises embeddings.
    #[default]
    Random,
    /// The embeddings of tokens drawn from the vocabulary.
    SampleVocab,
    /// The embeddings of a text's tokens, repeated or cut to the number of virtual tokens.
    Text,
}

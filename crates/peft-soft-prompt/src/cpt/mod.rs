//! CPT: the embeddings of a context's tokens before the input, each moved within a ball.

mod config;
mod loss;
mod state;

pub use config::{CPT, CptConfig, WeightedLoss};
pub use state::{ContextForm, ContextPrompt, MovedContext};

/// What a context's token is, by its number in `cpt_tokens_type_mask`. Each example of the context has four numbers of
/// its own: those of its parts are 1, 2, 3 and 4 more than a multiple of four.
mod kinds {
    /// The template around the input.
    pub(super) const INPUT_TEMPLATE: u32 = 1;
    /// The input.
    pub(super) const INPUT: u32 = 2;
    /// The template around the label.
    pub(super) const OUTPUT_TEMPLATE: u32 = 3;
    /// How many there are; the label's remainder is 0.
    pub(super) const COUNT: u32 = 4;

    /// Whether this number is a label's.
    pub(super) fn is_label(number: u64) -> bool {
        number > 0 && number.is_multiple_of(u64::from(COUNT))
    }
}

//! The types of sites: what flows by decides what can act there.

use std::fmt;

/// Which hidden state flows by at a [`Site<Hidden>`](crate::nn::Site); methods select by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HiddenState {
    /// What goes into the first block: the embeddings of tokens with all that the model does to them.
    EmbeddingOutput,
    /// The output of an attention sublayer, before the residual is added.
    AttentionOutput,
    /// The output of a feed-forward sublayer, before the residual is added.
    FeedForwardOutput,
    /// The output of a whole block: the residual stream that the next block reads.
    BlockOutput,
}

/// What flows by at a site, whatever its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SiteKind {
    /// Token embeddings before positions are added: prompts go in front of them.
    Embeddings,
    /// The residual stream in front of a block: prompts may go in front of it there, too.
    Stream,
    /// A hidden state.
    Hidden(HiddenState),
    /// Keys and values of an attention layer, as its queries see them: prefixes go in front of them.
    KeyValue,
    /// What the heads of an attention layer give, side by side, before the output projection.
    Attention,
}

impl fmt::Display for SiteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embeddings => "embeddings",
            Self::Stream => "stream between blocks",
            Self::Hidden(HiddenState::EmbeddingOutput) => "embedding output",
            Self::Hidden(HiddenState::AttentionOutput) => "attention output",
            Self::Hidden(HiddenState::FeedForwardOutput) => "feed-forward output",
            Self::Hidden(HiddenState::BlockOutput) => "block output",
            Self::KeyValue => "keys and values",
            Self::Attention => "attention heads",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What a [`Site`](crate::nn::Site) takes. Its types are [`Hidden`], [`Prompt`], [`KeyValue`] and
/// [`Attention`].
pub trait SiteType: sealed::Sealed + Clone + Copy + fmt::Debug + Send + Sync + 'static {}

/// A hidden state, for [`HiddenAdapter`](crate::method::HiddenAdapter)s.
#[derive(Clone, Copy, Debug)]
pub struct Hidden;

/// Embeddings, or the stream between blocks, for [`PromptAdapter`](crate::method::PromptAdapter)s.
#[derive(Clone, Copy, Debug)]
pub struct Prompt;

/// Keys and values, for [`KeyValueAdapter`](crate::method::KeyValueAdapter)s.
#[derive(Clone, Copy, Debug)]
pub struct KeyValue;

/// What attention's heads give, for [`AttentionAdapter`](crate::method::AttentionAdapter)s.
#[derive(Clone, Copy, Debug)]
pub struct Attention;

impl sealed::Sealed for Hidden {}
impl sealed::Sealed for Prompt {}
impl sealed::Sealed for KeyValue {}
impl sealed::Sealed for Attention {}
impl SiteType for Hidden {}
impl SiteType for Prompt {}
impl SiteType for KeyValue {}
impl SiteType for Attention {}

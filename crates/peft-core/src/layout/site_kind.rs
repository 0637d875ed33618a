//! What flows by at a site, and what is fixed about one.

/// What flows by at a [`Site`](crate::Site); methods and targets select by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SiteKind {
    /// Token embeddings before positions are added: prompts go in front of them.
    Embeddings,
    /// The output of an attention sublayer, before the residual is added.
    AttentionOutput,
    /// The output of a feed-forward sublayer, before the residual is added.
    FeedForwardOutput,
    /// Keys and values of an attention layer, as its queries see them: prefixes go in front of them.
    KeyValue,
}

impl std::fmt::Display for SiteKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Embeddings => "embeddings",
            Self::AttentionOutput => "attention output",
            Self::FeedForwardOutput => "feed-forward output",
            Self::KeyValue => "keys and values",
        })
    }
}

/// The fixed part of a site.
#[derive(Clone, Debug)]
pub(crate) struct SiteHead {
    pub(crate) kind: SiteKind,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) name: &'static str,
}

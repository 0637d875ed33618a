//! Why adapters cannot be made into one.

/// Adapters that cannot be made into one, inside of [`peft_core::Error::Method`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{adapter}` cannot be combined so: {reason}")]
#[non_exhaustive]
pub struct CombineError {
    /// The adapter, or the layer where it is.
    pub adapter: String,
    /// Why not, and what would do.
    pub reason: String,
}

impl CombineError {
    /// As an error of core's.
    pub(crate) fn refuse(
        adapter: impl Into<String>,
        reason: impl Into<String>,
    ) -> peft_core::Error {
        let (adapter, reason) = (adapter.into(), reason.into());
        peft_core::Error::Method(Box::new(Self { adapter, reason }))
    }
}

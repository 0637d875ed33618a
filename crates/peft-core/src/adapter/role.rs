//! What a state is, for counts and configuration files.

/// What a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// What the method adds.
    Method,
    /// The copy of a module that is saved whole: counted apart, as papers do.
    SavedModule,
    /// Trained rows of an embedding table: counted as the method's, and no target of its own.
    TrainedTokens,
}

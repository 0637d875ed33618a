//! The names of the methods that all others are held against.

/// Name of the method that trains the task head on the frozen backbone: the baseline method of classification.
pub const HEAD_ONLY: &str = "head-only";

/// Name of what trains nothing, the model as it came: the baseline method of language models.
pub const BASE: &str = "base";

/// Name of the method that trains every weight.
pub const FULL: &str = "full";

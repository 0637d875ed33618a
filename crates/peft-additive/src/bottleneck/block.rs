//! The block of the model that a place is in.

/// The first number among the segments of a name: the block's index.
pub(crate) fn block(name: &str) -> Option<usize> {
    name.split('.').find_map(|segment| segment.parse().ok())
}

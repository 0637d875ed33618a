//! How packed matrices lie on a device.

/// How a packed matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// `[rows, columns]`.
    pub(crate) shape: [usize; 2],
    /// Of a code.
    pub(crate) bits: usize,
    /// Elements that share a scale.
    pub(crate) block_size: usize,
    /// Scales that share a factor, which are codes of 8 bits then; 0 if scales are numbers.
    pub(crate) nested: usize,
}

impl Layout {
    /// How wide `x Wᵀ` is, or `x W` if the product is flipped.
    pub(crate) fn width(&self, flipped: bool) -> usize {
        self.shape[usize::from(flipped)]
    }
}

//! Rotation of pairs of features by angles that grow with the position.

use super::buffers::change_rows;
use super::math::vectors;

/// Angles, and how the features lie.
#[derive(Clone, Copy)]
pub(crate) struct Rotation<'a> {
    /// `[items, seq, half]`, where items is 1 or the batch.
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
    pub(crate) heads: usize,
    /// Pairs of a head.
    pub(crate) half: usize,
}

/// Rotates `[batch, seq, heads · 2 · half]` in place, or back where `inverse`. The first half of a head's
/// features are the pairs' first members.
pub(crate) fn in_place(data: &mut [f32], rotation: Rotation<'_>, inverse: bool) {
    let Rotation {
        cos,
        sin,
        heads,
        half,
    } = rotation;
    let width = 2 * half;
    let sign = if inverse { -1.0 } else { 1.0 };
    let rows = cos.len() / half.max(1);
    change_rows(data, heads * width, |first, part| {
        vectors(
            #[inline(always)]
            |_| {
                for (row, values) in part.chunks_exact_mut(heads * width).enumerate() {
                    // One item's angles serve every item of the batch.
                    let from = (first + row) % rows * half;
                    let (cos, sin) = (&cos[from..from + half], &sin[from..from + half]);
                    for head in values.chunks_exact_mut(width) {
                        let (left, right) = head.split_at_mut(half);
                        let pairs = left.iter_mut().zip(right).zip(cos.iter().zip(sin));
                        for ((a, b), (cos, sin)) in pairs {
                            let sin = sign * sin;
                            let turned = *a * cos - *b * sin;
                            *b = *b * cos + *a * sin;
                            *a = turned;
                        }
                    }
                }
            },
        );
    });
}

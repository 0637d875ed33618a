//! Groups of a model's blocks, of which each has methods of its own.

use std::ops::Range;

/// Chen et al. 2023, Parameter-Efficient Fine-Tuning Design Spaces, section 4.2: the indices of `blocks` blocks in four
/// groups, one behind the other, of which the two in the middle are equal and larger than the outer ones: a third of the
/// blocks each, or as near to it as can be. `None` where this cannot be: for fewer than 6 blocks, and for 7.
///
/// ```
/// assert_eq!(peft_hybrid::spindle(12), Some([0..2, 2..6, 6..10, 10..12]));
/// assert_eq!(peft_hybrid::spindle(7), None);
/// ```
pub fn spindle(blocks: usize) -> Option<[Range<usize>; 4]> {
    let outer = |inner: usize| blocks.checked_sub(2 * inner);
    // Of two outer groups the first is the smaller one.
    let fits =
        |inner: &usize| outer(*inner).is_some_and(|outer| outer >= 2 && outer.div_ceil(2) < *inner);
    let inner = (1..=blocks / 2)
        .filter(fits)
        .min_by_key(|inner| (3 * inner).abs_diff(blocks))?;
    let outer = outer(inner)?;
    let ends = [outer / 2, outer / 2 + inner, outer / 2 + 2 * inner, blocks];
    let [first, second, third, last] = ends;
    Some([0..first, first..second, second..third, third..last])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_thicker_than_the_ends() {
        for blocks in 0..100 {
            let Some(groups) = spindle(blocks) else {
                assert!(blocks < 6 || blocks == 7, "{blocks}");
                continue;
            };
            let sizes = groups.clone().map(|group| group.len());
            assert_eq!(sizes.iter().sum::<usize>(), blocks);
            assert_eq!(sizes[1], sizes[2], "{blocks}");
            assert!(sizes[0] >= 1 && sizes[0] < sizes[1], "{blocks}: {sizes:?}");
            assert!(sizes[3] >= 1 && sizes[3] < sizes[2], "{blocks}: {sizes:?}");
        }
        assert_eq!(spindle(6), Some([0..1, 1..3, 3..5, 5..6]));
        assert_eq!(spindle(24), Some([0..4, 4..12, 12..20, 20..24]));
    }
}

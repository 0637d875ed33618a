//! Groups of a model's blocks, of which each has methods of its own.

use std::collections::BTreeSet;
use std::ops::Range;

use peft_additive::BottleneckConfig;
use peft_core::method::{HiddenState, Layout};
use peft_core::{Error, Result, Selection};
use peft_reparameterization::{AdapterHubLora, LoraConfig};
use peft_selective::BitFitConfig;
use peft_soft_prompt::AdapterHubPrefixConfig;

use crate::union::{UNION, UnionConfig};

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

/// A block's index: the first number among the segments of a name.
fn block(name: &str) -> Option<usize> {
    name.split('.').find_map(|segment| segment.parse().ok())
}

/// Chen et al. 2023, *S4* as they found it for T5-base: the groups of [`spindle`] have a bottleneck and LoRA; a
/// bottleneck and a prefix; both and trained biases; a prefix, trained biases and LoRA.
///
/// Every block has about `per_block` trained parameters, as the paper found it best: sizes are the largest whole ones that fit. The
/// prefix has one length in all groups, half of what is left beside the biases. A model without biases has none trained.
///
/// # Errors
///
/// [`Error::Config`] for a model that cannot be grouped, or whose blocks have no sites for bottlenecks; and where `per_block`
/// leaves nothing for a method.
pub fn s4(layout: &Layout, per_block: usize) -> Result<UnionConfig> {
    let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
        Err(Error::config(UNION.title, field, value, expected))
    };
    let indices = layout.layers.iter().filter_map(|layer| block(&layer.name));
    let blocks = indices.collect::<BTreeSet<usize>>().len();
    let Some([first, second, third, last]) = spindle(blocks) else {
        return refuse("blocks", &blocks, "6, or 8 and more");
    };
    let mut sites = layout.hidden_sites(HiddenState::FeedForwardOutput);
    let Some(width) = sites.next().map(|site| site.width) else {
        return refuse("blocks", &blocks, "blocks with a site behind feed-forward");
    };
    let kv = layout
        .key_value_sites()
        .next()
        .map_or(width, |site| site.width);
    let biases = |index: usize| -> usize {
        let own = layout.params.iter().filter(|param| {
            let of_block = block(&layout.layer_of(param).name) == Some(index);
            of_block && param.field() == "bias" && param.shape().len() == 1
        });
        own.map(peft_core::method::LayoutParam::elements).sum()
    };
    let biases = biases(last.start);
    let sizes = Sizes { width, kv };
    let Some(beside) = per_block.checked_sub(biases) else {
        let expected = format!("at least the {biases} biases of a block");
        return refuse("per_block", &per_block, &expected);
    };
    let prefix = sizes.prefix(beside / 2)?;
    let of_prefix = prefix * 2 * kv;
    let rest = |used: usize| per_block.saturating_sub(used);
    let except = |kept: &[&Range<usize>]| -> Vec<usize> {
        (0..blocks)
            .filter(|index| !kept.iter().any(|group| group.contains(index)))
            .collect()
    };
    let bottleneck = |group: &Range<usize>, elements: usize| {
        let inner = sizes.bottleneck(elements)?;
        // Half a unit more, so that rounding does not lose one.
        let factor = width as f64 / (inner as f64 + 0.5);
        let config = BottleneckConfig::pfeiffer().with_reduction_factor(factor);
        Ok::<_, Error>(config.with_leave_out(except(&[group])))
    };
    let lora = |group: &Range<usize>, elements: usize| {
        let places = AdapterHubLora {
            leave_out: except(&[group]),
            ..AdapterHubLora::default()
        };
        let rank = sizes.rank(elements)?;
        let config = LoraConfig::new(rank).with_alpha(rank as f64);
        Ok::<_, Error>(config.with_adapterhub(places))
    };
    let prefixes = AdapterHubPrefixConfig::new()
        .with_flat(true)
        .with_prefix_length(prefix)
        .with_leave_out(except(&[&second, &third, &last]));
    let union = UnionConfig::new()
        .with(prefixes)
        .with(bottleneck(&first, per_block / 2)?)
        .with(bottleneck(&second, rest(of_prefix))?)
        .with(bottleneck(&third, rest(of_prefix + biases))?)
        .with(lora(&first, per_block / 2)?)
        .with(lora(&last, rest(of_prefix + biases))?);
    if biases == 0 {
        return Ok(union);
    }
    let trained: Vec<String> = (third.start..blocks)
        .map(|index| index.to_string())
        .collect();
    // A layer's name with one of these numbers among its segments.
    let pattern = format!(r"(.*\.)?({})\..*", trained.join("|"));
    let biases = BitFitConfig::new().with_targets(Selection::Pattern(pattern));
    Ok(union.with(biases))
}

/// Largest sizes of methods that have so many elements in a block.
struct Sizes {
    width: usize,
    kv: usize,
}

impl Sizes {
    fn at_least_one(size: usize, what: &str) -> Result<usize> {
        if size > 0 {
            return Ok(size);
        }
        let expected = format!("more: nothing is left for {what}");
        Err(Error::config(UNION.title, "per_block", size, expected))
    }

    /// Width inside of a bottleneck: two projections, two biases.
    fn bottleneck(&self, elements: usize) -> Result<usize> {
        let size = elements.saturating_sub(self.width) / (2 * self.width + 1);
        Self::at_least_one(size, "a bottleneck")
    }

    /// Rank of LoRA on queries and values.
    fn rank(&self, elements: usize) -> Result<usize> {
        let of_rank = (self.width + self.width) + (self.width + self.kv);
        Self::at_least_one(elements / of_rank, "LoRA")
    }

    /// Length of a prefix: keys and values.
    fn prefix(&self, elements: usize) -> Result<usize> {
        Self::at_least_one(elements / (2 * self.kv), "a prefix")
    }
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

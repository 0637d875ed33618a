//! Which step takes which rows, in which order.

use crate::TrainConfig;
use crate::schedule::Length;

/// Which step takes which rows: a function of the step alone, so a run goes on anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Steps in all.
    pub(crate) steps: usize,
    /// Steps that one epoch takes; the last one may have fewer rows.
    pub(crate) steps_per_epoch: usize,
    rows: usize,
    rows_per_step: usize,
    seed: u64,
}

impl Plan {
    /// For data of `rows` rows, 1 at least.
    pub(crate) fn new(config: &TrainConfig, rows: usize) -> Self {
        let rows_per_step = config
            .batch_size
            .saturating_mul(config.gradient_accumulation);
        let steps_per_epoch = rows.div_ceil(rows_per_step);
        let steps = match config.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => epochs.saturating_mul(steps_per_epoch),
        };
        Self {
            steps,
            steps_per_epoch,
            rows,
            rows_per_step,
            seed: config.seed,
        }
    }

    /// The epoch that the step after `step` others belongs to, counted from 0.
    pub(crate) fn epoch(&self, step: usize) -> usize {
        step / self.steps_per_epoch
    }

    /// How many groups of layers train in the step after `step` others, if one more does after each `length`.
    pub(crate) fn groups(&self, step: usize, length: Length) -> usize {
        let steps = match length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => epochs.saturating_mul(self.steps_per_epoch),
        };
        step / steps + 1
    }

    /// All rows in the order of `epoch`.
    pub(crate) fn order(&self, epoch: usize) -> Vec<usize> {
        use rand::SeedableRng as _;
        use rand::seq::SliceRandom as _;

        let mut order: Vec<usize> = (0..self.rows).collect();
        let mut random = rand::rngs::StdRng::seed_from_u64(mix(self.seed, epoch));
        order.shuffle(&mut random);
        order
    }

    /// The part of its epoch's order that the step after `step` others takes.
    pub(crate) fn range(&self, step: usize) -> std::ops::Range<usize> {
        let start = step % self.steps_per_epoch * self.rows_per_step;
        start..(start + self.rows_per_step).min(self.rows)
    }
}

/// A seed for each of many things that are drawn under one seed. The factor is 2^64 over the golden
/// ratio, which spreads small numbers over all bits.
pub(crate) fn mix(seed: u64, index: usize) -> u64 {
    seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_takes_every_row_once_in_an_order_of_its_own() {
        let config = TrainConfig::new()
            .with_batch_size(2)
            .with_gradient_accumulation(3)
            .with_length(Length::Epochs(2));
        let plan = Plan::new(&config, 20);
        assert_eq!((plan.steps, plan.steps_per_epoch), (8, 4));
        assert_eq!((plan.epoch(3), plan.epoch(4)), (0, 1));
        assert_eq!((plan.range(3), plan.range(4)), (18..20, 0..6));
        let groups = |length| [0, 3, 4, 7].map(|step| plan.groups(step, length));
        assert_eq!(groups(Length::Epochs(1)), [1, 1, 2, 2]);
        assert_eq!(groups(Length::Steps(3)), [1, 2, 2, 3]);
        let [first, second] = [plan.order(0), plan.order(1)];
        assert_ne!(first, second);
        assert_eq!(first, plan.order(0));
        let mut sorted = second;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
        let other = Plan::new(&config.with_seed(7), 20);
        assert_ne!(other.order(0), first);
    }
}

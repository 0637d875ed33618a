//! How long to train, and at which learning rate.

use serde::{Deserialize, Serialize};

use crate::TrainConfig;

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Length {
    /// That many steps of the optimizer, over the data as often as it takes.
    Steps(usize),
    /// That many times over the data.
    Epochs(usize),
}

/// How the learning rate falls after the warmup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Schedule {
    /// It does not.
    Constant,
    /// In a straight line.
    #[default]
    Linear,
    /// Along half a cosine (Loshchilov and Hutter 2017, SGDR, eq. 5, without restarts).
    Cosine,
}

/// Steps over which the learning rate rises from 0 in a straight line: fewer than the run has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Warmup {
    /// Their number.
    Steps(usize),
    /// Their share of all steps, in [0, 1); rounded up.
    Ratio(f64),
}

impl Warmup {
    /// Their number in a run of `of` steps.
    pub(crate) fn steps(self, of: usize) -> usize {
        match self {
            Self::Steps(steps) => steps,
            Self::Ratio(ratio) => (of as f64 * ratio).ceil() as usize,
        }
    }
}

impl TrainConfig {
    /// The learning rate of the step after `step` others, of `steps` in all. As Hugging Face's schedules
    /// have it, the first step of a warmup is at 0.
    pub fn learning_rate_at(&self, step: usize, steps: usize) -> f64 {
        let warmup = self.warmup.steps(steps);
        if step < warmup {
            return self.learning_rate * step as f64 / warmup as f64;
        }
        let done = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        let done = done.min(1.0);
        let factor = match self.schedule {
            Schedule::Constant => return self.learning_rate,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        self.learning_rate * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * factor)
    }
}

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

    /// Held against what transformers 5.23 computes for a rate of 1, 20 steps and a warmup of 4.
    #[test]
    fn rates_are_those_of_hugging_face() {
        let config = TrainConfig::new()
            .with_learning_rate(1.0)
            .with_warmup(Warmup::Steps(4));
        let rates = |config: &TrainConfig| -> Vec<f64> {
            let steps = [0, 1, 4, 5, 7, 12, 19];
            steps.map(|step| config.learning_rate_at(step, 20)).to_vec()
        };
        let near = |found: Vec<f64>, expected: [f64; 7]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
            }
        };
        let linear = rates(&config);
        near(linear, [0.0, 0.25, 1.0, 0.9375, 0.8125, 0.5, 0.0625]);
        let cosine = config.clone().with_schedule(Schedule::Cosine);
        let expected = [0.0, 0.25, 1.0, 0.990_393, 0.915_735, 0.5, 0.009_607];
        near(rates(&cosine), expected);
        let expected = [0.0, 0.25, 1.0, 0.991_353, 0.924_161, 0.55, 0.108_647];
        near(rates(&cosine.with_min_lr_ratio(0.1)), expected);
        let constant = config.with_schedule(Schedule::Constant);
        near(rates(&constant), [0.0, 0.25, 1.0, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn a_share_of_warmup_is_rounded_up() {
        assert_eq!(Warmup::Ratio(0.03).steps(50), 2);
        assert_eq!(Warmup::Ratio(0.0).steps(50), 0);
    }

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

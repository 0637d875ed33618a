//! The statistics of the report: means with intervals, percentiles, and differences paired over seeds.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Below this distance between the baseline and full fine-tuning, in units of the metric, a share of their gap is noise.
pub const MEANINGFUL_GAP: f64 = 0.01;

/// A mean over seeds with its 95 % confidence interval.
#[derive(Serialize, Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half the width of the interval by Student's t; `None` for a single value.
    pub half_width: Option<f64>,
    /// Number of values.
    pub n: usize,
}

impl Estimate {
    /// The estimate of `values`, or `None` when there are none or one is not finite.
    ///
    /// A seed that diverged is not left out: that would flatter its method.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mean = mean(values)?;
        let half_width = standard_deviation(values).map(|deviation| {
            t_quantile(values.len() - 1) * deviation / (values.len() as f64).sqrt()
        });
        Some(Self {
            mean,
            half_width,
            n: values.len(),
        })
    }

    /// Lower end of the interval; the mean itself for a single value.
    pub fn lower(&self) -> f64 {
        self.mean - self.half_width.unwrap_or(0.0)
    }

    /// Upper end of the interval; the mean itself for a single value.
    pub fn upper(&self) -> f64 {
        self.mean + self.half_width.unwrap_or(0.0)
    }
}

/// The arithmetic mean, or `None` of no values or where one is not finite.
pub fn mean(values: &[f64]) -> Option<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    mean.is_finite().then_some(mean)
}

/// The standard deviation of a sample (divisor n − 1), or `None` of fewer than two values or where one is not finite.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// The percentile `percent` in `0..=100` with linear interpolation between the closest ranks, or `None` of no values.
///
/// # Panics
///
/// When `percent` is outside of `0..=100`.
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    assert!(
        (0.0..=100.0).contains(&percent),
        "percent must be in 0..=100, got {percent}"
    );
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = percent / 100.0 * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (
        sorted[position.floor() as usize],
        sorted[position.ceil() as usize],
    );
    Some(below + (above - below) * position.fract())
}

/// The estimate of `a − b` over the seeds that both have, or `None` when they share none.
///
/// Each side is a list of seeds with scores. Pairing removes what a seed does to both sides alike, such as the order
/// of the data.
pub fn paired_difference(a: &[(u64, f64)], b: &[(u64, f64)]) -> Option<Estimate> {
    let differences: Vec<f64> = a
        .iter()
        .filter_map(|(seed, score)| Some(score - score_of(b, *seed)?))
        .collect();
    Estimate::of(&differences)
}

/// The share of the gap between the baseline (head-only, or the untrained language model) and full fine-tuning that a
/// method closes: 0 is the baseline, 1 is full.
///
/// More must be better; negate the scores of a metric where less is. `None` where full does not beat the baseline by
/// [`MEANINGFUL_GAP`].
pub fn share_of_gap(score: f64, baseline: f64, full: f64) -> Option<f64> {
    let gap = full - baseline;
    (score.is_finite() && gap >= MEANINGFUL_GAP).then(|| (score - baseline) / gap)
}

/// The [`share_of_gap`] of the means over the seeds that all three have.
pub fn paired_share_of_gap(
    own: &[(u64, f64)],
    baseline: &[(u64, f64)],
    full: &[(u64, f64)],
) -> Option<f64> {
    let shared = own.iter().filter_map(|(seed, score)| {
        let references = (score_of(baseline, *seed)?, score_of(full, *seed)?);
        Some((*score, references))
    });
    let (own, (baseline, full)): (Vec<_>, (Vec<_>, Vec<_>)) = shared.unzip();
    share_of_gap(mean(&own)?, mean(&baseline)?, mean(&full)?)
}

fn score_of(scores: &[(u64, f64)], seed: u64) -> Option<f64> {
    scores
        .iter()
        .find(|(other, _)| *other == seed)
        .map(|(_, score)| *score)
}

/// The best and worst rank of `own` among `all`, itself included, that the intervals allow; more is better.
///
/// One estimate is ranked before another only when its interval lies above the other's. The ranges of two estimates
/// whose intervals overlap always overlap, too.
pub fn rank_interval(own: &Estimate, all: &[Estimate]) -> (usize, usize) {
    let better = all
        .iter()
        .filter(|other| other.lower() > own.upper())
        .count();
    let worse = all
        .iter()
        .filter(|other| other.upper() < own.lower())
        .count();
    (1 + better, all.len() - worse)
}

/// Whether none of `all` beats `own` in one of score and cost without losing in the other.
///
/// Points are pairs of score, where more is better, and cost, where less is.
pub fn is_on_front(own: (f64, f64), all: &[(f64, f64)]) -> bool {
    !all.iter()
        .any(|other| other.0 >= own.0 && other.1 <= own.1 && *other != own)
}

/// The 97.5 % quantile of Student's t, the factor of a two-sided 95 % interval.
fn t_quantile(degrees_of_freedom: usize) -> f64 {
    StudentsT::new(0.0, 1.0, degrees_of_freedom as f64)
        .expect("an interval has at least one degree of freedom")
        .inverse_cdf(0.975)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(actual: f64, expected: f64, tolerance: f64) {
        assert!(
            (actual - expected).abs() < tolerance,
            "{actual} is not {expected}"
        );
    }

    #[test]
    fn t_quantiles_are_those_of_the_tables() {
        for (freedom, expected) in [
            (1, 12.7062),
            (2, 4.3027),
            (3, 3.1824),
            (4, 2.7764),
            (9, 2.2622),
            (29, 2.0452),
        ] {
            close(t_quantile(freedom), expected, 1e-4);
        }
    }

    #[test]
    fn estimates_have_known_values() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0]).unwrap();
        close(estimate.mean, 2.0, 1e-12);
        close(estimate.half_width.unwrap(), 4.3027 / 3f64.sqrt(), 1e-4);
        close(
            standard_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap(),
            2.1381,
            1e-4,
        );
        assert_eq!(Estimate::of(&[5.0]).unwrap().half_width, None);
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn percentiles_interpolate() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(percentile(&values, 50.0), Some(2.5));
        close(percentile(&values, 90.0).unwrap(), 3.7, 1e-12);
        assert_eq!(percentile(&values, 100.0), Some(4.0));
        assert_eq!(percentile(&[7.0], 90.0), Some(7.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn pairs_are_found_by_seed() {
        let a = [(1, 0.9), (2, 0.6), (7, 0.0)];
        let b = [(2, 0.5), (1, 0.8), (3, 1.0)];
        let difference = paired_difference(&a, &b).unwrap();
        assert_eq!(difference.n, 2);
        close(difference.mean, 0.1, 1e-12);
        close(difference.half_width.unwrap(), 0.0, 1e-9);
        assert_eq!(paired_difference(&a, &[(9, 1.0)]), None);
    }

    #[test]
    fn overlapping_estimates_are_not_ranked_apart() {
        let all =
            [(0.9, 0.01), (0.885, 0.01), (0.87, 0.01), (0.5, 0.01)].map(|(mean, half)| Estimate {
                mean,
                half_width: Some(half),
                n: 3,
            });
        // The first overlaps the second and the second the third, but the first is above the third.
        assert_eq!(
            all.map(|own| rank_interval(&own, &all)),
            [(1, 2), (1, 3), (2, 3), (4, 4)]
        );
    }

    #[test]
    fn the_front_has_no_dominated_point() {
        let points = [
            (0.9, 10.0),
            (0.8, 1.0),
            (0.8, 2.0),
            (0.7, 0.5),
            (0.9, 10.0),
            (0.6, 20.0),
        ];
        assert_eq!(
            points.map(|own| is_on_front(own, &points)),
            [true, true, false, true, true, false]
        );
    }

    #[test]
    fn a_share_is_over_shared_seeds() {
        let (head_only, full) = ([(1, 0.5), (2, 0.6)], [(2, 0.8), (3, 0.9)]);
        close(
            paired_share_of_gap(&[(1, 0.0), (2, 0.7), (3, 0.0)], &head_only, &full).unwrap(),
            0.5,
            1e-9,
        );
        assert_eq!(paired_share_of_gap(&[(1, 0.9)], &head_only, &full), None);
    }

    #[test]
    fn a_gap_too_small_has_no_share() {
        close(share_of_gap(0.75, 0.7, 0.8).unwrap(), 0.5, 1e-9);
        close(share_of_gap(0.65, 0.7, 0.8).unwrap(), -0.5, 1e-9);
        assert_eq!(share_of_gap(0.75, 0.7, 0.705), None);
        assert_eq!(share_of_gap(0.75, 0.8, 0.7), None);
        assert_eq!(share_of_gap(f64::NAN, 0.7, 0.8), None);
        // Of losses, negated: (3.0 - 2.8) / (3.0 - 2.6).
        close(share_of_gap(-2.8, -3.0, -2.6).unwrap(), 0.5, 1e-9);
    }
}

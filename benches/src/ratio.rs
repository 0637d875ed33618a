//! A ratio of two cases, and whether it is what is wanted.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::case::Case;
use crate::process::{Done, median};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Seconds of an iteration.
    Time,
    /// Highest resident bytes of the process.
    Memory,
    /// Bits of a quantized weight, of one case alone.
    Bits,
}

/// A bound on the median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Needed {
    AtLeast(f64),
    AtMost(f64),
    /// 1 within noise: the spread of the rounds contains it, or the median is within 2 %.
    One,
    Nothing,
}

/// `over` divided by `under`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratio {
    pub(crate) name: &'static str,
    pub(crate) over: Case,
    pub(crate) under: Case,
    pub(crate) measure: Measure,
    pub(crate) needed: Needed,
}

/// A ratio of times; a speed-up has the slower side over the faster.
pub(crate) const fn time(name: &'static str, over: Case, under: Case, needed: Needed) -> Ratio {
    Ratio {
        name,
        over,
        under,
        measure: Measure::Time,
        needed,
    }
}

/// A ratio of memory.
pub(crate) const fn memory(name: &'static str, over: Case, under: Case, needed: Needed) -> Ratio {
    Ratio {
        measure: Measure::Memory,
        ..time(name, over, under, needed)
    }
}

/// No ratio, but a number of one case: bits of a quantized weight.
pub(crate) const fn bits(name: &'static str, of: Case, needed: Needed) -> Ratio {
    Ratio {
        measure: Measure::Bits,
        ..time(name, of, of, needed)
    }
}

/// A ratio over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        Self {
            median: median(&mut values),
            min: values[0],
            max: values[values.len() - 1],
        }
    }
}

impl Ratio {
    /// Both cases.
    pub(crate) fn cases(&self) -> [Case; 2] {
        [self.over, self.under]
    }

    /// Whether a case is Hugging Face's.
    pub(crate) fn has_peer(&self) -> bool {
        self.cases().iter().any(|case| case.engine.is_peer())
    }

    /// The ratio, if both cases were measured.
    pub(crate) fn of(&self, done: &HashMap<Case, Done>) -> Option<Spread> {
        let (over, under) = (done.get(&self.over)?, done.get(&self.under)?);
        Some(Spread::of(match self.measure {
            Measure::Time => over
                .medians
                .iter()
                .zip(&under.medians)
                .map(|(over, under)| over / under)
                .collect(),
            Measure::Memory => vec![over.memory.peak as f64 / under.memory.peak as f64],
            Measure::Bits => vec![over.ready.bits?],
        }))
    }
}

impl Needed {
    /// Whether it is so; none if nothing is needed.
    pub(crate) fn holds(self, found: Spread) -> Option<bool> {
        match self {
            Self::AtLeast(bound) => Some(found.median >= bound),
            Self::AtMost(bound) => Some(found.median <= bound),
            Self::One => {
                Some((found.min <= 1.0 && found.max >= 1.0) || (found.median - 1.0).abs() <= 0.02)
            }
            Self::Nothing => None,
        }
    }

    /// The bound, for people.
    pub(crate) fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {bound:.2}"),
            Self::AtMost(bound) => format!("<= {bound:.2}"),
            Self::One => "1.00".to_string(),
            Self::Nothing => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_on_the_median() {
        let found = Spread::of(vec![1.3, 0.5, 0.9]);
        let (median, min, max) = (0.9, 0.5, 1.3);
        assert_eq!(found, Spread { median, min, max });
        assert_eq!(Needed::AtMost(0.9).holds(found), Some(true));
        assert_eq!(Needed::AtLeast(1.0).holds(found), Some(false));
        assert_eq!(Needed::One.holds(found), Some(true));
        assert_eq!(Needed::Nothing.holds(found), None);
        assert_eq!(Needed::AtMost(4.13).text(), "<= 4.13");
    }
}

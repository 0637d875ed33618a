//! How far from upstream's values a case may be.

use std::path::Path;

use super::case::{name, peft_type};
use super::{Measured, Rounding};

/// How far from upstream's a case of a method may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Of outputs, merged or not, which are of order 1.
    pub output: f32,
    /// Of gradients, relative to the largest.
    pub gradients: f32,
    /// What rounding excuses at most, of outputs and gradients; 0 in a case that is not named in
    /// [`EXCUSED_BY_ROUNDING`].
    pub excused: f32,
}

/// Cases in which more than the tolerance is rounding: the last bit of their parameters moves them by nearly that.
pub const EXCUSED_BY_ROUNDING: &[&str] = &["randlora"];

/// How much of that is excused in such a case: [`ROUNDINGS`] times what [`Rounding`] does, and never more than this.
pub const MOST_EXCUSED: f32 = 1e-3;

/// Differences of so many times what [`Rounding`] does are rounding.
pub const ROUNDINGS: f32 = 2.0;

/// 1e-4, and twice that for methods whose goldens say so: their changes are large.
pub fn tolerance(case: &Path) -> Tolerance {
    let most = match peft_type(case).as_str() {
        "RANDLORA" | "ADALORA" | "FOURIERFT" => 2e-4,
        _ => 1e-4,
    };
    let excused = EXCUSED_BY_ROUNDING.contains(&name(case));
    Tolerance {
        output: most,
        gradients: most,
        excused: if excused { MOST_EXCUSED } else { 0.0 },
    }
}

impl Measured {
    /// Whether nothing is farther from upstream than `tolerance`, or than rounding explains where that is an
    /// excuse, and the counts are equal.
    pub fn fits(&self, tolerance: Tolerance) -> bool {
        let allowed = |own: f32, rounding: fn(&Rounding) -> f32| {
            let explained = self.rounding.as_ref().map(|all| ROUNDINGS * rounding(all));
            // What is no number explains nothing.
            match explained.filter(|explained| explained.is_finite()) {
                Some(explained) => own.max(explained.min(tolerance.excused)),
                None => own,
            }
        };
        let output = allowed(tolerance.output, |all| all.output);
        let gradients = allowed(tolerance.gradients, |all| all.gradients);
        let outputs = [Some(self.output), self.merged];
        self.expected
            .is_none_or(|expected| expected == self.trainable)
            && outputs
                .into_iter()
                .flatten()
                .all(|distance| distance <= output)
            && self.gradients.is_none_or(|distance| distance <= gradients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Rounding;
    use crate::golden::compare::farthest;
    use burn::tensor::TensorData;

    fn measured(output: f32, gradients: f32, rounding: Option<f32>) -> Measured {
        Measured {
            output,
            merged: None,
            gradients: Some(gradients),
            trainable: 1,
            expected: Some(1),
            counted: None,
            lost: 0,
            rounding: rounding.map(|rounding| Rounding {
                output: rounding,
                gradients: rounding,
            }),
        }
    }

    fn allowed(excused: f32) -> Tolerance {
        Tolerance {
            output: 1e-4,
            gradients: 1e-4,
            excused,
        }
    }

    #[test]
    fn rounding_excuses_named_cases_only_and_not_everything() {
        let (named, other) = (allowed(MOST_EXCUSED), allowed(0.0));
        assert!(measured(9e-5, 9e-5, None).fits(other));
        for (output, gradients) in [(3e-4, 0.0), (0.0, 3e-4)] {
            let far = measured(output, gradients, Some(2e-4));
            assert!(far.fits(named), "{far:?}");
            assert!(!far.fits(other), "{far:?}");
            assert!(!measured(output, gradients, Some(1e-4)).fits(named));
            assert!(!measured(output, gradients, None).fits(named));
        }
        // A case that rounding moves by everything proves nothing.
        assert!(!measured(2e-3, 0.0, Some(1.0)).fits(named));
        assert_eq!(tolerance(Path::new("x/lora")).excused.to_bits(), 0);
        assert!(tolerance(Path::new("x/randlora")).excused > 0.0);
    }

    #[test]
    fn what_is_no_number_does_not_fit() {
        for bad in [f32::NAN, f32::INFINITY] {
            for case in [measured(bad, 0.0, None), measured(0.0, bad, None)] {
                assert!(!case.fits(allowed(MOST_EXCUSED)), "{case:?}");
            }
            let mut case = measured(0.0, 0.0, None);
            case.merged = Some(bad);
            assert!(!case.fits(allowed(MOST_EXCUSED)), "{case:?}");
            assert!(!measured(3e-4, 0.0, Some(bad)).fits(allowed(MOST_EXCUSED)));
        }
        let data = |value: f32| TensorData::new(vec![1.0, value], [2]);
        let distance = farthest(&data(f32::NAN), &data(1.0), "output").unwrap();
        assert!(distance.is_nan());
    }
}

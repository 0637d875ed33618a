//! Distances that see what is no number.

/// The largest magnitude, 0 of no values; NaN where one value is NaN or infinite.
///
/// NaN fails every comparison: a test that asserts `largest(…) < bound` fails, and so does one that asserts
/// `largest(…) > 0.0`.
///
/// ```
/// assert_eq!(peft_testing::largest([1.0_f32, -3.0]), 3.0);
/// assert!(peft_testing::largest([1.0_f32, f32::INFINITY]).is_nan());
/// ```
pub fn largest<T: Into<f64>>(values: impl IntoIterator<Item = T>) -> f64 {
    values.into_iter().fold(0.0, |most, value| {
        let magnitude = value.into().abs();
        // Once NaN, always NaN: it is neither finite nor less than anything.
        if !magnitude.is_finite() || most.is_nan() {
            f64::NAN
        } else if magnitude > most {
            magnitude
        } else {
            most
        }
    })
}

/// The largest absolute difference of two lists, element by element; NaN where one value of either is NaN or
/// infinite, even if the other list has the same there.
///
/// ```
/// assert_eq!(peft_testing::farthest([1.0_f32, 2.0], [1.0_f32, 2.5]), 0.5);
/// assert!(peft_testing::farthest([f32::NAN], [f32::NAN]).is_nan());
/// ```
///
/// # Panics
///
/// If the lists are of different lengths.
#[track_caller]
pub fn farthest<A: Into<f64>, B: Into<f64>>(
    a: impl IntoIterator<Item = A>,
    b: impl IntoIterator<Item = B>,
) -> f64 {
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let mut differences = Vec::new();
    loop {
        match (a.next(), b.next()) {
            // Of two equal infinities the difference is NaN.
            (Some(a), Some(b)) => differences.push(a.into() - b.into()),
            (None, None) => return largest(differences),
            (one, _) => {
                let which = if one.is_some() { "second" } else { "first" };
                panic!(
                    "the {which} list ends after {} values, the other goes on",
                    differences.len()
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_NUMBERS: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

    #[test]
    fn what_is_no_number_fails_every_bound_wherever_it_is() {
        for bad in NO_NUMBERS {
            for at in 0..4 {
                let good = [0.0_f32, 1.0, -2.0, 3.0];
                let mut values = good;
                values[at] = bad;
                for distance in [
                    largest(values),
                    farthest(values, good),
                    farthest(good, values),
                    farthest(values, values),
                ] {
                    let passes = distance < f64::INFINITY || distance >= 0.0;
                    assert!(!passes, "{bad} at {at}: {distance}");
                }
            }
        }
    }

    #[test]
    fn numbers_are_measured() {
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12);
        close(largest([1.0_f64, -4.0, 2.0]), 4.0);
        close(largest::<f32>([]), 0.0);
        close(farthest([1.0_f32, -4.0, 2.0], [1.0_f64, -1.5, 2.0]), 2.5);
        close(farthest([1_i32], [1_i32]), 0.0);
    }

    #[test]
    #[should_panic(expected = "the second list ends after 1 values")]
    fn lists_of_different_lengths_have_no_distance() {
        farthest([1.0_f32, 2.0], [1.0_f32]);
    }
}

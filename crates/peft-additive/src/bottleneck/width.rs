//! The width inside of a bottleneck.

/// `width / factor` rounded down as Python's `//` does, which is exact where the quotient of floats is not; at least 1.
pub(crate) fn inner_width(width: usize, factor: f64) -> usize {
    let width = width as f64;
    let quotient = (width - width % factor) / factor;
    (quotient.round() as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::inner_width;

    #[test]
    fn widths_are_rounded_as_python_does() {
        for (width, factor, expected) in [
            (384, 16.0, 24),
            (384, 96.0, 4),
            (32, 5.0, 6),
            (32, 64.0, 1),
            (32, 0.5, 64),
            // 1 / 0.1 is 10 in floats, and 10 · 0.1 is more than 1.
            (1, 0.1, 9),
            (384, 0.1, 3839),
        ] {
            assert_eq!(inner_width(width, factor), expected, "{width} / {factor}");
        }
    }
}

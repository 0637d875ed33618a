//! Statistics that are not there.

use crate::error::Error;

/// A statistic that is there for no layer, as it was not asked for.
pub(crate) fn not_gathered(place: &str, ask: &str) -> Error {
    Error::Calibration {
        place: place.to_string(),
        reason: format!("this statistic was not gathered: set `{ask}` of `CalibrationConfig`"),
    }
}

pub(crate) fn not_finite(place: &str, what: &str) -> Error {
    Error::Calibration {
        place: place.to_string(),
        reason: format!(
            "{what} hold NaN or infinity, or are too large for F32 sums: check the batches and the model's weights"
        ),
    }
}

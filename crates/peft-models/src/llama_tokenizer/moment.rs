//! The time that chat templates write.

use std::fmt::{self, Display, Formatter, Write as _};
use std::str::FromStr;

use chrono::{DateTime, FixedOffset, Local, NaiveDate, NaiveTime, SubsecRound as _};
use serde::{Deserialize, Serialize};

use crate::LoadError;

/// A moment as a clock shows it somewhere: what a chat template gets as the present time.
///
/// As text it is a date with a time and its distance from UTC, as RFC 3339 writes it. A date alone is read
/// as its first moment, in UTC. Two are equal if a clock shows the same: the place counts.
///
/// ```
/// let moment: peft_models::Moment = "2026-11-30T08:15:00+01:00".parse()?;
/// assert_eq!(moment.to_string(), "2026-11-30T08:15:00+01:00");
/// let day: peft_models::Moment = "2026-11-30".parse()?;
/// assert_eq!(day.to_string(), "2026-11-30T00:00:00+00:00");
/// # Ok::<(), peft_models::LoadError>(())
/// ```
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Moment(DateTime<FixedOffset>);

impl Moment {
    /// The present second, where this machine is.
    pub fn now() -> Self {
        Self(Local::now().fixed_offset().trunc_subsecs(0))
    }

    /// As text, in a format of `strftime`; none if it is no such format.
    pub(super) fn format(&self, format: &str) -> Option<String> {
        let mut text = String::new();
        write!(text, "{}", self.0.format(format)).ok()?;
        Some(text)
    }
}

impl PartialEq for Moment {
    fn eq(&self, other: &Self) -> bool {
        // Chrono's own comparison leaves the place out.
        self.0 == other.0 && self.0.offset() == other.0.offset()
    }
}

impl Eq for Moment {}

impl Display for Moment {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.to_rfc3339())
    }
}

impl FromStr for Moment {
    type Err = LoadError;

    /// # Errors
    ///
    /// [`LoadError::Setting`] if the text is neither a date nor a date with a time.
    fn from_str(text: &str) -> Result<Self, LoadError> {
        let day = || {
            let day: NaiveDate = text.parse().ok()?;
            Some(day.and_time(NaiveTime::MIN).and_utc().fixed_offset())
        };
        let whole = DateTime::parse_from_rfc3339(text).ok();
        let moment = whole.or_else(day).ok_or_else(|| LoadError::Setting {
            setting: "moment",
            found: format!("{text:?}"),
            expected: "a date such as 2026-11-30, or one with a time such as \
                       2026-11-30T08:15:00+01:00"
                .to_string(),
        })?;
        Ok(Self(moment))
    }
}

impl TryFrom<String> for Moment {
    type Error = LoadError;

    fn try_from(text: String) -> Result<Self, LoadError> {
        text.parse()
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> Self {
        moment.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_written_as_asked_for() {
        let moment: Moment = "2026-03-07T23:05:09+05:30".parse().unwrap();
        assert_eq!(moment.format("%d %b %Y").unwrap(), "07 Mar 2026");
        assert_eq!(moment.format("%H:%M:%S").unwrap(), "23:05:09");
        assert_eq!(moment.format("%Q"), None);
    }

    #[test]
    fn one_instant_is_two_moments_in_two_time_zones() {
        let [east, west] = ["2026-03-08T00:30:00+01:00", "2026-03-07T23:30:00+00:00"]
            .map(|text| text.parse::<Moment>().unwrap());
        assert_ne!(east, west);
        assert_ne!(east.format("%d"), west.format("%d"));
        // As text and back, the place is kept.
        for moment in [east, west, Moment::now()] {
            let text = serde_json::to_string(&moment).unwrap();
            assert_eq!(serde_json::from_str::<Moment>(&text).unwrap(), moment);
        }
    }

    #[test]
    fn what_is_no_date_is_refused_with_one_that_is() {
        for text in ["", "today", "2026-13-01", "30.11.2026"] {
            let error = text.parse::<Moment>().unwrap_err().to_string();
            assert!(error.contains("2026-11-30T08:15:00+01:00"), "{error}");
        }
    }
}

//! Numbers in the units of people.

use crate::statistics::Estimate;

/// What stands where nothing was measured.
pub(super) const MISSING: &str = "–";

/// `value` by `format`, or a dash.
pub(super) fn optional<T>(value: Option<T>, format: impl Fn(T) -> String) -> String {
    value.map_or(MISSING.into(), format)
}

/// A score, three decimals; a dash when it is not finite.
pub(super) fn score(value: f64) -> String {
    if value.is_finite() {
        format!("{value:.3}")
    } else {
        MISSING.into()
    }
}

/// A score with half the width of its interval, when it has one.
pub(super) fn estimate(estimate: Estimate) -> String {
    let interval = estimate
        .half_width
        .map(|half| format!(" ± {half:.3}"))
        .unwrap_or_default();
    format!("{:.3}{interval}", estimate.mean)
}

/// A gain with its sign and half the width of its interval, when it has one.
pub(super) fn gain(gain: Estimate) -> String {
    let sign = if gain.mean < 0.0 { '−' } else { '+' };
    format!(
        "{sign}{}",
        estimate(Estimate {
            mean: gain.mean.abs(),
            ..gain
        })
    )
}

/// A range of ranks.
pub(super) fn rank_interval((best, worst): (usize, usize)) -> String {
    if best == worst {
        best.to_string()
    } else {
        format!("{best}–{worst}")
    }
}

/// A share as a whole percentage.
pub(super) fn percent(share: f64) -> String {
    let rounded = (share * 100.0).round();
    format!(
        "{}{} %",
        if rounded < 0.0 { "−" } else { "" },
        rounded.abs()
    )
}

/// A count: `980`, `8.19k`, `4.39M`.
pub(super) fn count(value: f64) -> String {
    match value {
        ..1e3 => format!("{value:.0}"),
        ..999_500.0 => format!("{}k", significant(value / 1e3)),
        ..999_500_000.0 => format!("{}M", significant(value / 1e6)),
        _ => format!("{}G", significant(value / 1e9)),
    }
}

/// A size: `512 B`, `33.4 KiB`, `16.7 MiB`.
pub(super) fn bytes(value: f64) -> String {
    const KIB: f64 = 1024.0;
    const MIB: f64 = 1024.0 * KIB;
    const GIB: f64 = 1024.0 * MIB;
    match value {
        ..KIB => format!("{value:.0} B"),
        ..MIB => format!("{} KiB", significant(value / KIB)),
        ..GIB => format!("{} MiB", significant(value / MIB)),
        _ => format!("{} GiB", significant(value / GIB)),
    }
}

/// Three significant digits, and no fewer digits than the whole part has.
pub(super) fn significant(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        ..0.9995 => 3,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// `1 seed`, `3 seeds`.
pub(super) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_for_people() {
        assert_eq!(
            [0.0, 999.0, 8192.0, 105_000.0, 999_600.0, 4_386_178.0].map(count),
            ["0", "999", "8.19k", "105k", "1.00M", "4.39M"]
        );
        assert_eq!(
            [512.0, 1024.0, 34_168.0, 17_546_112.0].map(bytes),
            ["512 B", "1.00 KiB", "33.4 KiB", "16.7 MiB"]
        );
        assert_eq!(
            [0.0, 0.1234, 1.234, 12.34, 123.4, 1234.0].map(significant),
            ["0", "0.123", "1.23", "12.3", "123", "1234"]
        );
        assert_eq!(
            [-0.5, -0.001, 1.234].map(percent),
            ["−50 %", "0 %", "123 %"]
        );
        assert_eq!(
            gain(Estimate {
                mean: -0.02,
                half_width: Some(0.004),
                n: 3
            }),
            "−0.020 ± 0.004"
        );
    }
}

//! Progress bars on a terminal; elsewhere they are silent and the plain lines around them say what happens.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A bar over bytes. A length of 0 may be set later.
pub(crate) fn bytes(what: &str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "  {msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )
    .expect("the template is constant");
    ProgressBar::new(length)
        .with_style(style)
        .with_message(what.to_owned())
}

/// A spinner for work whose size is not known.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("  {spinner} {msg} {elapsed}")
        .expect("the template is constant");
    let bar = ProgressBar::new_spinner()
        .with_style(style)
        .with_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

//! What a test says where it cannot run.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Says that `what` was not tried, and why. Where everything is required (`PEFT_REQUIRE_ALL=1`) it is an error;
/// the file that `PEFT_SKIPS` names gets a line.
pub(crate) fn skipped(what: &str, why: &str) {
    let required = std::env::var("PEFT_REQUIRE_ALL").is_ok_and(|value| value == "1");
    assert!(!required, "{what} was not tried: {why}");
    println!("skipped: {what}: {why}");
    if let Some(file) = std::env::var_os("PEFT_SKIPS") {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)
            .unwrap();
        writeln!(file, "{what}: {why}").unwrap();
    }
}

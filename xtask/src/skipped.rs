//! The list of what did not run.

use crate::error::Error;
use peft_testing::{Kind, REQUIRE_ALL, Skip};
use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

/// Appends to the list what cannot run, and why.
///
/// # Errors
/// Everything must run ([`REQUIRE_ALL`]); the list cannot be written.
pub(crate) fn skip(skips: &Path, what: &'static str, why: &'static str) -> Result<(), Error> {
    if env::var_os(REQUIRE_ALL).is_some_and(|value| value == "1") {
        return Err(Error::Missing { what, why });
    }
    let skip = Skip {
        kind: Kind::Missing,
        what: what.to_owned(),
        why: why.to_owned(),
    };
    let mut list = OpenOptions::new()
        .create(true)
        .append(true)
        .open(skips)
        .map_err(Error::io("open", skips))?;
    writeln!(list, "{}", skip.to_line()).map_err(Error::io("write", skips))
}

/// What the tests wrote to the list, and which steps were left out, as text.
///
/// # Errors
/// The list is there and cannot be read.
pub(crate) fn summary(list: &Path, left_out: &[&str]) -> Result<String, Error> {
    let text = match fs::read_to_string(list) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::io("read", list)(error)),
    };
    // Several test programs say the same.
    let skips: BTreeSet<Skip> = text.lines().filter_map(Skip::from_line).collect();
    let mut out = String::new();
    let mut section = |title: &str, kind: Kind| {
        let skips: Vec<&Skip> = skips.iter().filter(|skip| skip.kind == kind).collect();
        if !skips.is_empty() {
            let _ = writeln!(out, "{title}");
            for skip in skips {
                let _ = writeln!(out, "  {}: {}", skip.what, skip.why);
            }
        }
    };
    section(
        &format!("did not run, for something is missing ({REQUIRE_ALL}=1 makes this a failure):"),
        Kind::Missing,
    );
    section("has no meaning there:", Kind::DoesNotApply);
    if !left_out.is_empty() {
        let _ = writeln!(
            out,
            "steps that were not asked for: {}",
            left_out.join(", ")
        );
    }
    if out.is_empty() {
        out.push_str("nothing was skipped");
    }
    Ok(out.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_run_is_listed_once() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("skips");
        assert_eq!(summary(&list, &[]).unwrap(), "nothing was skipped");
        let line = |kind, what: &str, why: &str| {
            let (what, why) = (what.to_owned(), why.to_owned());
            Skip { kind, what, why }.to_line() + "\n"
        };
        let test = line(
            Kind::DoesNotApply,
            "conformance test `a` on ndarray",
            "no F16",
        );
        let model = line(Kind::Missing, "a test (a.rs)", "no model");
        fs::write(&list, format!("{test}{model}{test}")).unwrap();
        assert_eq!(
            summary(&list, &["cuda"]).unwrap(),
            "did not run, for something is missing (PEFT_REQUIRE_ALL=1 makes this a failure):\n  \
             a test (a.rs): no model\n\
             has no meaning there:\n  conformance test `a` on ndarray: no F16\n\
             steps that were not asked for: cuda"
        );
    }
}

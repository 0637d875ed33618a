//! Tests that cannot run where something is missing, and say so.

use std::env;
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Set to `1`, it makes a failure of every test that would be skipped.
pub const REQUIRE_ALL: &str = "PEFT_REQUIRE_ALL";

/// Names the file to which what did not run is appended, one [`Skip`] a line. `cargo xtask check` sets it, and
/// shows the list at its end.
pub const SKIPS: &str = "PEFT_SKIPS";

/// Why something did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// Something is missing on this machine: a fetched model, a Python.
    Missing,
    /// It has no meaning there: a conformance test of f16 on a backend without f16. No machine could run it.
    DoesNotApply,
}

impl Kind {
    const ALL: [(Self, &'static str); 2] = [
        (Self::Missing, "missing"),
        (Self::DoesNotApply, "does not apply"),
    ];
}

/// One test, or part of one, that did not run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skip {
    /// Why, in kind.
    pub kind: Kind,
    /// The test, or the conformance test and the backend.
    pub what: String,
    /// Why, in words.
    pub why: String,
}

impl Skip {
    /// A line of the list, which has no line ends and two tabs.
    pub fn to_line(&self) -> String {
        let kind = Kind::ALL.iter().find(|(kind, _)| *kind == self.kind);
        let plain = |text: &str| text.replace(['\t', '\n', '\r'], " ");
        let kind = kind.map_or("", |(_, word)| word);
        format!("{kind}\t{}\t{}", plain(&self.what), plain(&self.why))
    }

    /// A line of the list; `None` if it is none.
    pub fn from_line(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, '\t');
        let (kind, what, why) = (parts.next()?, parts.next()?, parts.next()?);
        let (kind, _) = Kind::ALL.iter().find(|(_, word)| *word == kind)?;
        Some(Self {
            kind: *kind,
            what: what.to_string(),
            why: why.to_string(),
        })
    }
}

/// Says that the test that calls this does not run (the caller returns then), because `missing` is not here.
///
/// The test is named by its thread, as Rust's test harness does, and by the file of the call.
///
/// # Panics
///
/// Where [`REQUIRE_ALL`] is `1`, saying what is missing; and if the file that [`SKIPS`] names cannot be written.
#[track_caller]
pub fn skip(missing: impl Display) {
    let thread = std::thread::current();
    let file = Location::caller().file();
    let what = match thread.name() {
        Some(name) if name != "main" => format!("{name} ({file})"),
        _ => format!("{file}:{}", Location::caller().line()),
    };
    let skip = Skip {
        kind: Kind::Missing,
        what,
        why: missing.to_string(),
    };
    let required = env::var_os(REQUIRE_ALL);
    say(&skip, required.as_deref(), env::var_os(SKIPS).as_deref());
}

/// Says that `what` has no meaning here, and why. Nothing makes a failure of it.
///
/// # Panics
///
/// If the file that [`SKIPS`] names cannot be written.
pub fn does_not_apply(what: impl Display, why: impl Display) {
    let skip = Skip {
        kind: Kind::DoesNotApply,
        what: what.to_string(),
        why: why.to_string(),
    };
    say(&skip, None, env::var_os(SKIPS).as_deref());
}

/// A file or folder that `cargo xtask fetch` brings, by its path in the folder of assets: `PEFT_ASSETS`, or
/// `.cache/peft` in the home folder. Where it is not there, this is a [`skip`].
///
/// # Panics
///
/// As [`skip`] does.
#[track_caller]
pub fn fetched(path: &str) -> Option<PathBuf> {
    let named = |variable| env::var_os(variable).filter(|value| !value.is_empty());
    let assets = named("PEFT_ASSETS").map(PathBuf::from);
    let assets = assets.or_else(|| Some(PathBuf::from(named("HOME")?).join(".cache/peft")));
    let found = assets.unwrap_or_default().join(path);
    if found.exists() {
        return Some(found);
    }
    skip(format!(
        "no {}; `cargo xtask fetch` brings it",
        found.display()
    ));
    None
}

fn say(skip: &Skip, required: Option<&OsStr>, list: Option<&OsStr>) {
    let Skip { what, why, .. } = skip;
    assert!(
        required.is_none_or(|value| value.is_empty() || value == "0"),
        "{what} cannot run, and {REQUIRE_ALL} is set: {why}"
    );
    println!("did not run: {what}: {why}");
    if let Some(list) = list.filter(|list| !list.is_empty()) {
        append(Path::new(list), &(skip.to_line() + "\n"));
    }
}

/// Tests of several processes write to one file: each line at once, and at its end.
fn append(list: &Path, line: &str) {
    let file = OpenOptions::new().create(true).append(true).open(list);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        panic!(
            "cannot append to {}, which {SKIPS} names: {error}",
            list.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(kind: Kind) -> Skip {
        Skip {
            kind,
            what: "a test (tests/a.rs)".to_string(),
            why: "no model".to_string(),
        }
    }

    #[test]
    fn a_skip_is_a_line_and_back() {
        for kind in [Kind::Missing, Kind::DoesNotApply] {
            let skip = example(kind);
            assert_eq!(Skip::from_line(&skip.to_line()), Some(skip));
        }
        let mut skip = example(Kind::Missing);
        skip.why = "one\ntwo\tthree".to_string();
        let line = skip.to_line();
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(Skip::from_line(&line).unwrap().why, "one two three");
        assert_eq!(Skip::from_line("else\ta\tb"), None);
        assert_eq!(Skip::from_line("missing\ta"), None);
    }

    #[test]
    fn what_did_not_run_is_in_the_list() {
        let list = env::temp_dir().join(format!("peft-skips-{}", std::process::id()));
        for kind in [Kind::Missing, Kind::DoesNotApply] {
            say(&example(kind), None, Some(list.as_os_str()));
            say(&example(kind), Some("0".as_ref()), Some("".as_ref()));
        }
        let text = std::fs::read_to_string(&list).unwrap();
        std::fs::remove_file(&list).unwrap();
        let found: Vec<_> = text.lines().filter_map(Skip::from_line).collect();
        assert_eq!(found, [example(Kind::Missing), example(Kind::DoesNotApply)]);
    }

    #[test]
    #[should_panic(expected = "PEFT_REQUIRE_ALL is set: no model")]
    fn where_all_is_required_a_skip_is_a_failure() {
        say(&example(Kind::Missing), Some("1".as_ref()), None);
    }
}

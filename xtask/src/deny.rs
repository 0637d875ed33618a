//! Licences, sources, versions and advisories of all dependencies, as `deny.toml` says.

use crate::{cargo::cargo, error::Error, skipped::skip};
use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Runs cargo-deny where it is installed, and its advisories where their database can be had. What cannot run is
/// appended to the list `skips`. `run` runs a command.
///
/// # Errors
/// What cargo-deny refuses; a list that cannot be written.
pub(crate) fn check(
    skips: &Path,
    run: impl Fn(&mut Command) -> Result<(), Error>,
) -> Result<(), Error> {
    if !succeeds(&["--version"]) {
        return skip(
            skips,
            "step deny",
            "no cargo-deny: cargo install cargo-deny --locked",
        );
    }
    run(&mut cargo(["deny", "check", "licenses", "bans", "sources"]))?;
    if !succeeds(&["fetch", "db"]) {
        let why = "the database of advisories could not be fetched, and none is here";
        return skip(skips, "step deny, advisories", why);
    }
    run(&mut cargo(["deny", "check", "advisories"]))
}

fn succeeds(arguments: &[&str]) -> bool {
    let mut command = cargo(["deny"]);
    command
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

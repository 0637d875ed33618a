//! The check that a crate outside the workspace can add a method: the template's is tested, and takes part in a
//! comparison.

use crate::{cargo, embedded, error::Error, template, workspace};
use cargo_metadata::{Artifact, camino::Utf8PathBuf};
use std::{fs, path::Path, process::Command};

/// The method's name.
const NAME: &str = "sample-scale";

/// Features that others in the workspace ask of dependencies that Burn has, too. With these the crate's build shares
/// all of them, and Burn; without them it is no less right.
const FEATURES: &str = "\
[target.'cfg(all())'.dependencies]
bytes = \"1\"
crc32fast = \"1\"
memchr = \"2\"
serde_json = { version = \"1\", features = [\"unbounded_depth\"] }
";

/// Crates that are built once more for the crate outside, and need not be fast there. The operations stay fast.
const SMALL: [&str; 12] = [
    "peft",
    "peft-additive",
    "peft-compare",
    "peft-conformance",
    "peft-core",
    "peft-hybrid",
    "peft-models",
    "peft-quantization",
    "peft-reparameterization",
    "peft-selective",
    "peft-soft-prompt",
    "peft-train",
];

/// Writes the crate, builds it beside the workspace, runs its tests and a short comparison. `execute` runs a command
/// and refuses one that fails.
///
/// # Errors
/// What `execute` refuses; Burn built anew; a comparison without the method.
pub(crate) fn check(execute: impl Fn(&mut Command) -> Result<(), Error>) -> Result<(), Error> {
    // Everything that is shared is there after this.
    cargo::build(
        cargo::Program::Bin("peft-compare"),
        cargo::Build::Checked,
        None,
    )?;
    let parent =
        tempfile::tempdir().map_err(Error::io("create a folder in", std::env::temp_dir()))?;
    let folder = template::write(parent.path(), NAME)?;
    let manifest = folder.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).map_err(Error::io("read", &manifest))?;
    let small = SMALL.map(|name| format!("[profile.release.package.{name}]\nopt-level = 0\n"));
    let text = format!("{text}\n{FEATURES}\n{}", small.concat());
    fs::write(&manifest, text).map_err(Error::io("write", &manifest))?;
    let target = workspace::target_dir()?;
    let command = |word: &str| {
        let mut command = Command::new(workspace::program());
        command
            .current_dir(&folder)
            .env("CARGO_TARGET_DIR", &target)
            .args([word, "--release", "--features", "ndarray"]);
        command
    };
    let mut build = command("test");
    build.arg("--no-run");
    let built = cargo::artifacts(build, NAME)?;
    let again = built_again(&built);
    if !again.is_empty() {
        return Err(Error::BuiltAgain {
            packages: again.join(", "),
        });
    }
    execute(&mut command("test"))?;
    let compare = executable(&built, "compare")?;
    let out = parent.path().join("results");
    let mut compare = cargo::ours(&compare)?;
    compare
        .current_dir(&folder)
        .env(embedded::VARIABLE, embedded::folder()?)
        .args(["--suite", "smoke", "--methods", NAME, "--out"])
        .arg(&out);
    execute(&mut compare)?;
    compared(&out)
}

/// What of Burn was not taken from the workspace's build.
fn built_again(artifacts: &[Artifact]) -> Vec<&str> {
    let burn = |artifact: &&Artifact| {
        let name = artifact.target.name.as_str();
        !artifact.fresh && (name == "burn" || name.starts_with("burn_"))
    };
    artifacts
        .iter()
        .filter(burn)
        .map(|artifact| artifact.target.name.as_str())
        .collect()
}

/// The program of the example `name`.
fn executable(artifacts: &[Artifact], name: &str) -> Result<std::path::PathBuf, Error> {
    artifacts
        .iter()
        .filter(|artifact| artifact.target.is_example() && artifact.target.name == name)
        .find_map(|artifact| artifact.executable.clone())
        .map(Utf8PathBuf::into_std_path_buf)
        .ok_or_else(|| Error::NoExecutable {
            package: name.to_owned(),
        })
}

/// Refuses results in which the method is not.
fn compared(out: &Path) -> Result<(), Error> {
    let path = out.join("results.csv");
    let results = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    if results.lines().any(|line| line.contains(NAME)) {
        Ok(())
    } else {
        Err(Error::NotCompared { name: NAME, path })
    }
}

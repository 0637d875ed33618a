//! What a run ran on, and from which sources.

use std::process::{Command, Stdio};

use crate::measure;
use crate::record::{Environment, Git};

/// The Burn release that this is built on, as pinned in the workspace.
const BURN: &str = "0.22.1";

/// The machine and the versions.
pub(crate) fn environment(device: &str) -> Environment {
    Environment {
        device: device.to_string(),
        threads: rayon::current_num_threads(),
        os: std::env::consts::OS.to_string(),
        cpu: measure::cpu(),
        kernels: measure::kernels(),
        burn: BURN.to_string(),
        peft: env!("CARGO_PKG_VERSION").to_string(),
        rustc: said("rustc", &["--version"]),
    }
}

/// The revision of the folder that this runs in; empty outside of a repository.
pub(crate) fn git() -> Git {
    Git {
        revision: said("git", &["rev-parse", "--short=12", "HEAD"]),
        dirty: !said("git", &["status", "--porcelain"]).is_empty(),
    }
}

/// What a program says; empty if it cannot be run.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stderr(Stdio::null())
        .output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_recorded_burn_release_is_the_pinned_one() {
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("burn = {{ version = \"={}\"", super::BURN)));
    }
}

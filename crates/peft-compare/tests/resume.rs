//! A comparison that is killed goes on where it was and ends with the same numbers.
//!
//! Needs the embedded model, whose folder `cargo xtask check` passes on; without it the test is
//! skipped.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use peft_compare::record::RunRecord;

fn compare(out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft-compare"));
    command
        .args(["--suite", "smoke", "--methods", "lora", "--out"])
        .arg(out);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn scores(out: &Path) -> BTreeMap<String, (f64, f64, f64)> {
    RunRecord::load_dir(&out.join("runs"))
        .unwrap()
        .into_iter()
        .map(|run| (run.id, (run.dev, run.test, run.curve[0].train_loss)))
        .collect()
}

#[test]
fn killed_and_started_again_it_ends_with_the_same_numbers() {
    if std::env::var_os(peft_compare::job::EMBEDDED_MODEL).is_none() {
        peft_testing::skip("no embedded model; `cargo xtask check` brings it");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    assert!(compare(&whole).status().unwrap().success());

    let mut child = compare(&broken).spawn().unwrap();
    let start = Instant::now();
    // A run has its name only when it is complete: before that there is a temporary file.
    let jobs = broken.join("jobs");
    let finished = || {
        let entries = std::fs::read_dir(&jobs).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
    };
    while finished().is_none() && start.elapsed() < Duration::from_mins(2) {
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        !broken.join("report.html").exists(),
        "killed too late to prove anything"
    );
    let known = finished().expect("a run ends within two minutes");
    let written = std::fs::metadata(&known).unwrap().modified().unwrap();

    assert!(compare(&broken).status().unwrap().success());
    assert_eq!(scores(&broken), scores(&whole));
    assert_eq!(scores(&whole).len(), 3);
    let now = std::fs::metadata(&known).unwrap().modified().unwrap();
    assert_eq!(now, written, "a finished run was repeated");
    assert!(broken.join("report.html").exists());
}

#[test]
fn refusals_come_before_any_training() {
    let dir = tempfile::tempdir().unwrap();
    let says = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_peft-compare"))
            .args(arguments)
            .env_remove(peft_compare::job::EMBEDDED_MODEL)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(says(&["--suite", "nightly"]).contains("movie-reviews"));
    assert!(says(&["--methods", "lorra"]).contains("lora-all"));
    assert!(says(&["--device", "tpu"]).contains("flex"));
    assert!(says(&[]).contains("cargo xtask compare"));
    let file = dir.path().join("one.csv");
    std::fs::write(&file, "text,label\ngood,1\nfine,1\n").unwrap();
    let refused = says(&["--data", file.to_str().unwrap()]);
    assert!(
        refused.contains("class") || refused.contains("label"),
        "{refused}"
    );
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let refuses = |file: &str| says(&["--data", cases.join(file).to_str().unwrap(), "--dry-run"]);
    for (file, reason) in [
        (
            "eight-rows.csv",
            "8 rows leave no dev rows; give at least 10",
        ),
        (
            "four-rows.csv",
            "4 rows leave no dev and no test rows; give at least 10",
        ),
        (
            "stray-quote.csv",
            "line 12: the quote that opens here is never closed",
        ),
        (
            "stray-quote-two.csv",
            "line 12: the quote that opens here closes on line 21",
        ),
    ] {
        let said = refuses(file);
        assert!(said.contains(reason), "{file}: {said}");
    }
    assert!(says(&["--train", "0"]).contains("at least 1"));
}

//! A disk that is full at any moment costs no checkpoint that was there, and the run goes on from it with the same
//! numbers.
#![cfg(target_os = "linux")]

mod common;
#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use peft_train::checkpoint;
use rand::RngExt as _;
use runs::{Whole, random, rounds};

fn size(file: &Path) -> u64 {
    fs::metadata(file).unwrap().len()
}

fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// What the program said when it was refused a write.
fn assert_refused(output: &Output, said: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{errors}");
    assert!(errors.contains(said), "{errors}");
    assert!(errors.contains("was not saved"), "{errors}");
}

#[test]
fn a_run_by_itself() {
    runs::train_as_told();
}

/// The state of a run grows with its steps. Past some step it is larger than a file may be: the system refuses
/// to write the rest, or kills who tries.
#[test]
fn files_that_may_not_grow_are_refused_and_those_that_were_there_stay() {
    let steps = 120;
    let whole = Whole::new(steps);
    let path = |step: usize| whole.out().join(format!("checkpoint-{step}"));
    let others = entries(&path(1)).into_iter().map(|file| size(&file)).max();
    let state = size(&path(steps).join(checkpoint::STATE_FILE));
    let limit = others.unwrap() / 1024 + 1;
    assert!(state > (limit + 1) * 1024, "{state} bytes of {limit} KiB");
    for (signal, killed) in [("trap '' XFSZ; ", false), ("", true)] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("ulimit -c 0; ulimit -f {limit}; {signal}exec \"$@\"");
        let mut shell = Command::new("bash");
        shell.args(["-c", &script, "bash"]);
        let output = whole.by(shell, &out).output().unwrap();
        if killed {
            use std::os::unix::process::ExitStatusExt as _;
            assert_eq!(output.status.signal(), Some(25), "SIGXFSZ: {output:?}");
        } else {
            assert_refused(&output, "File too large");
        }
        let reached = whole.is_as_far_as(&out);
        assert!(reached > 0 && reached < steps, "{reached}");
        whole.ends_alike(&out);
    }
}

/// What a shell prints where it may not mount.
const NOT_MOUNTED: i32 = 77;

#[test]
fn a_disk_that_fills_up_costs_no_checkpoint_that_was_there() {
    let steps = 48;
    let whole = Whole::new(steps);
    // The file system counts in pages.
    let files = entries(&whole.out().join(format!("checkpoint-{steps}")));
    let checkpoint: u64 = files.iter().map(|file| size(file).div_ceil(4096) * 4).sum();
    let mut random = random();
    let mut refused = 0;
    for round in 0..rounds(5) {
        let dir = tempfile::tempdir().unwrap();
        let [disk, result] = ["disk", "result"].map(|name| dir.path().join(name));
        fs::create_dir(&disk).unwrap();
        // Room for one checkpoint to five, and the run has up to three; somebody else takes what is free for a
        // moment, and gives it back.
        let room = checkpoint + random.random_range(checkpoint / 4..4 * checkpoint);
        let most = whole.took.as_secs_f64() / 8.0;
        let pauses = [(); 2].map(|()| random.random_range(0.0..most));
        let script = format!(
            "mount -t tmpfs -o size={room}k tmpfs {disk} || exit {NOT_MOUNTED}
             while :; do
                 sleep {:.3}; cat /dev/zero > {disk}/filler 2> /dev/null
                 sleep {:.3}; rm -f {disk}/filler
             done & filler=$!
             \"$@\"; code=$?
             kill $filler
             cp -a {disk}/out {result}
             exit $code",
            pauses[0],
            pauses[1],
            disk = disk.display(),
            result = result.display(),
        );
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--map-root-user", "sh", "-c", &script, "sh"]);
        let Ok(output) = whole.by(shell, &disk.join("out")).output() else {
            return peft_testing::skip("a full disk needs `unshare`");
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(NOT_MOUNTED) || errors.starts_with("unshare:") {
            return peft_testing::skip(format!(
                "a full disk needs a file system that can be mounted: {errors}"
            ));
        }
        let failed = errors.matches("No space left on device").count();
        refused += failed;
        assert!(output.status.success() || failed > 0, "{errors}");
        let reached = if result.exists() {
            whole.is_as_far_as(&result)
        } else {
            0
        };
        println!("round {round}: {room} KiB, refused {failed} times, step {reached} is there");
        if output.status.success() {
            assert_eq!(reached, steps);
        }
        whole.ends_alike(&result);
    }
    assert!(refused > 0, "the disk was never full");
}

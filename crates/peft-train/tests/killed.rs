//! A run that is killed at any moment goes on from a whole checkpoint, and ends with the numbers that it would
//! have had.
#![cfg(unix)]

mod common;
#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use peft_train::checkpoint;
use rand::RngExt as _;
use runs::{Whole, json, random, rounds, silent};

const STEPS: usize = 24;
/// Kills of a run, before it may end.
const KILLS: usize = 4;

#[test]
fn a_run_by_itself() {
    runs::train_as_told();
}

fn newest(out: &Path) -> usize {
    let found = checkpoint::list(out).unwrap();
    found.last().map_or(0, |(step, _)| *step)
}

#[test]
fn a_run_that_is_killed_at_any_moment_ends_with_the_same_numbers() {
    let whole = Whole::new(STEPS);
    let mut random = random();
    let (mut kills, mut lost) = (0, 0);
    for round in 0..rounds(5) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut step = 0;
        for _ in 0..KILLS {
            if step == STEPS {
                break;
            }
            let aim = random.random_range(step..STEPS);
            let mut command = whole.command(&out);
            let mut child = silent(&mut command).spawn().unwrap();
            while newest(&out) < aim && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            // At any moment of the two steps behind.
            let pause = random.random_range(0.0..2.0) / STEPS as f64;
            std::thread::sleep(whole.took.mul_f64(pause));
            child.kill().unwrap();
            child.wait().unwrap();
            let reached = whole.is_as_far_as(&out);
            assert!(reached >= step, "{reached} after {step}");
            println!("round {round}: killed after step {reached}");
            step = reached;
            kills += usize::from(step > 0 && step < STEPS);
            let entries = fs::read_dir(&out).into_iter().flatten();
            lost += entries
                .filter(|entry| {
                    let name = entry.as_ref().unwrap().file_name();
                    name.to_string_lossy().ends_with(".partial")
                })
                .count();
        }
        whole.ends_alike(&out);
    }
    println!("{kills} kills between the first step and the last, {lost} folders left unfinished");
    assert!(kills > 0, "no kill came while the run was on its way");
}

#[test]
fn a_second_process_is_refused_while_the_first_one_writes() {
    let whole = Whole::new(STEPS);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut command = whole.command(&out);
    let mut first = silent(&mut command).spawn().unwrap();
    let start = Instant::now();
    while newest(&out) == 0 {
        assert!(start.elapsed() < Duration::from_mins(2));
        std::thread::sleep(Duration::from_millis(2));
    }
    // Stopped as a process can be stopped: it holds the folder.
    let signal = |name: &str| {
        let id = first.id().to_string();
        let status = std::process::Command::new("kill")
            .args([name, &id])
            .status();
        assert!(status.unwrap().success());
    };
    signal("-STOP");
    let second = whole.command(&out).output().unwrap();
    signal("-CONT");
    let errors = String::from_utf8_lossy(&second.stderr);
    println!("{errors}");
    assert!(!second.status.success());
    assert!(errors.contains("another run writes"), "{errors}");
    assert!(first.wait().unwrap().success());
    assert_eq!(whole.is_as_far_as(&out), STEPS);
    assert_eq!(json(&out.join("outcome.json"))["steps"], STEPS);
}

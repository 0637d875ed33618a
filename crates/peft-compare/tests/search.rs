//! The search for learning rates goes on beyond a grid at whose end the best rate lies.
//!
//! Needs the embedded model, whose folder `cargo xtask check` passes on; without it the test is skipped.

use std::process::Command;

use peft_compare::definition::MOST_TRIALS;
use peft_compare::record::{Place, RunRecord};

fn compare() -> Command {
    Command::new(env!("CARGO_BIN_EXE_peft-compare"))
}

#[test]
fn grids_are_extended_until_the_best_rate_lies_inside() {
    if std::env::var_os(peft_compare::job::EMBEDDED_MODEL).is_none() {
        peft_testing::skip("no embedded model; `cargo xtask check` brings it");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--suite", "smoke", "--methods", "bitfit", "--extend-grids"];
    let mut command = compare();
    command.args(arguments).arg("--out").arg(dir.path());
    let plan = command.arg("--dry-run").output().unwrap();
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.contains("and more where"), "{plan}");
    // What the middle of a grid gave is no run of its own once the search says which rate is best.
    let mut command = compare();
    command.args(&arguments[..4]).arg("--out").arg(dir.path());
    assert!(command.output().unwrap().status.success());
    let mut command = compare();
    command.args(arguments).arg("--out").arg(dir.path());
    let output = command.output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");

    let runs = RunRecord::load_dir(&dir.path().join("runs")).unwrap();
    assert_eq!(runs.len(), 3);
    for run in &runs {
        let rates: Vec<f64> = run.tuning.iter().map(|trial| trial.learning_rate).collect();
        assert!(rates.is_sorted(), "{rates:?}");
        let inside = rates[0] < run.learning_rate && run.learning_rate < rates[rates.len() - 1];
        assert!(
            inside || rates.len() == MOST_TRIALS,
            "{}: {rates:?}, best {}",
            run.method.name,
            run.learning_rate
        );
        assert_eq!(inside, run.place() == Some(Place::Inside));
    }
    let longer = runs
        .iter()
        .find(|run| run.tuning.len() > run.grid.as_ref().unwrap().learning_rates.len());
    assert!(
        longer.is_some(),
        "two steps of training: the published rates are too small for at least one of three"
    );

    let printed = compare().arg("grids").arg(dir.path()).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let table: toml::Table = printed.parse().unwrap();
    let rates = table["task"]["learning_rates"].as_table().unwrap();
    for run in &runs {
        let inside = run.place() == Some(Place::Inside);
        assert_eq!(rates.contains_key(&run.method.name), inside, "{printed}");
    }
}

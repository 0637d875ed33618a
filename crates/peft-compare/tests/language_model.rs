//! Language models end to end: a tiny Llama learns a text of the user's.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use peft_compare::definition::Kind;
use peft_compare::record::RunRecord;

/// A Llama of two layers with its tokenizer, as `transformers` wrote it.
fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft-models/tests/golden/generate/model")
}

/// Sentences that are alike, so that something can be learned.
fn text(dir: &Path) -> PathBuf {
    let path = dir.join("ledger.txt");
    let paragraphs: Vec<String> = (0..200)
        .map(|day| {
            format!(
                "On day {day} the clerk counted {} sacks and was content.",
                day * 7
            )
        })
        .collect();
    std::fs::write(&path, paragraphs.join("\n\n")).unwrap();
    path
}

fn compare(data: &Path, out: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peft-compare"))
        .arg("--model")
        .arg(model())
        .arg("--data")
        .arg(data)
        .arg("--out")
        .arg(out)
        .args(["--methods", "lora", "--seeds", "1,2", "--no-tune"])
        .args(more)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Name and seed with all that must not depend on the clock.
fn numbers(runs: &[RunRecord]) -> Vec<(String, u64, Vec<f64>)> {
    runs.iter()
        .map(|run| {
            let general = run.forgetting.expect("a language model's run has it");
            let mut numbers = vec![run.dev, run.test, general.before, general.after];
            numbers.extend(run.curve.iter().map(|epoch| epoch.dev));
            // That of epoch 0 is no number.
            numbers.extend(run.curve[1..].iter().map(|epoch| epoch.train_loss));
            (run.method.name.clone(), run.seed, numbers)
        })
        .collect()
}

#[test]
fn a_text_of_ones_own_is_learned_measured_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(dir.path());
    let runs = |out: &str| {
        let out = dir.path().join(out);
        let small = ["--max-len", "32", "--train", "24", "--epochs", "2"];
        let output = compare(&data, &out, &small);
        assert!(output.status.success(), "{}", said(&output));
        RunRecord::load_dir(&out.join("runs")).unwrap()
    };
    let first = runs("first");
    let named: Vec<_> = first
        .iter()
        .map(|run| (run.method.name.as_str(), run.seed))
        .collect();
    let expected = ["base", "full", "lora"].map(|name| [(name, 1), (name, 2)]);
    assert_eq!(named, expected.concat());

    for run in &first {
        assert_eq!(run.kind, Kind::LanguageModel);
        assert!(!run.metric.higher_is_better && run.metric.name == "loss");
        assert_eq!((run.rows.train, run.rows.general), (24, 40));
        assert_eq!(run.counts.head, 0);
        let same = |a: f64, b: f64| (a - b).abs() < 1e-12;
        let general = run.forgetting.unwrap();
        if run.method.name == "base" {
            assert!(same(run.test, run.baseline) && same(general.change(), 0.0));
            assert_eq!((run.curve.len(), run.counts.trainable), (1, 0));
            assert!(run.tuning.is_empty());
        } else {
            assert_eq!(run.curve.len(), 3, "before training, and two epochs");
            assert!(
                same(run.curve[0].dev, first[0].dev),
                "the same model at first"
            );
            assert!(same(run.baseline, first[0].test));
            assert!(run.test < run.baseline, "{} for {}", run.test, run.baseline);
            assert!(run.dev < run.curve[0].dev && run.curve[2].train_loss.is_finite());
            assert!(run.counts.trainable > 0 && run.adapter_bytes > 0 && run.tokens_per_s > 0.0);
        }
    }

    let report = std::fs::read_to_string(dir.path().join("first/report.md")).unwrap();
    assert!(report.contains("| Perplexity |") && report.contains("| Forgetting |"));
    assert!(report.contains("untrained model"));
    let csv = std::fs::read_to_string(dir.path().join("first/results.csv")).unwrap();
    assert_eq!(csv.lines().count(), 7);

    assert_eq!(
        numbers(&runs("second")),
        numbers(&first),
        "same seeds, same numbers"
    );
}

#[test]
fn what_is_built_from_others_trains_them_first() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(dir.path()), dir.path().join("out"));
    let output = Command::new(env!("CARGO_BIN_EXE_peft-compare"))
        .arg("--model")
        .arg(model())
        .arg("--data")
        .arg(&data)
        .arg("--out")
        .arg(&out)
        .args([
            "--methods",
            "adapter-fusion,pfeiffer",
            "--seeds",
            "1",
            "--no-tune",
        ])
        .args(["--max-len", "32", "--train", "24"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let runs = RunRecord::load_dir(&out.join("runs")).unwrap();
    let run = |name: &str| runs.iter().find(|run| run.method.name == name).unwrap();
    let (fusion, part) = (run("adapter-fusion"), run("pfeiffer"));
    // Three matrices and two biases at each of the two blocks are trained; two adapters are kept besides.
    assert_eq!(
        fusion.counts.stored,
        fusion.counts.trainable + 2 * part.counts.stored
    );
    assert!(fusion.adapter_bytes > 2 * part.adapter_bytes);
    assert!(fusion.test < fusion.baseline, "it learned");
    assert!(
        fusion.notes[0].contains("built from one (pfeiffer"),
        "{:?}",
        fusion.notes
    );
    assert_eq!(fusion.definition["parts"][1]["name"], "two");
    assert!(part.notes.is_empty());
}

#[test]
fn what_cannot_work_is_refused_before_any_training() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(dir.path());
    let refused = |more: &[&str]| {
        let output = compare(&data, &dir.path().join("out"), more);
        assert!(!output.status.success(), "{more:?}");
        said(&output)
    };
    // The model has 64 positions.
    assert!(refused(&["--max-len", "65"]).contains("reads at most 64"));
    assert!(refused(&["--max-len", "7"]).contains("at least 8"));
    assert!(refused(&["--max-len", "32", "--text-column", "review"]).contains("`review`"));
    let no_place = ["--max-len", "32", "--methods", "bitfit"];
    assert!(refused(&no_place).contains("bitfit"), "no layer has a bias");
    std::fs::write(&data, " \n").unwrap();
    assert!(refused(&["--max-len", "32"]).contains("ledger.txt"));
}

#[test]
fn a_dry_run_says_what_would_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = text(dir.path());
    let small = ["--max-len", "32", "--train", "24", "--dry-run"];
    let output = compare(&data, &dir.path().join("out"), &small);
    assert!(output.status.success(), "{}", said(&output));
    let plan = String::from_utf8_lossy(&output.stdout);
    assert!(plan.contains("5 runs"), "the base model runs once: {plan}");
    assert!(plan.contains("24 train") && plan.contains("40 of general text; 24 steps"));
    assert!(plan.contains("base: measured once"));
    assert!(!dir.path().join("out/jobs").exists());
}

#[test]
fn a_run_that_fails_is_reported_and_tried_again_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (text(dir.path()), dir.path().join("out"));
    let run = || compare(&data, &out, &["--max-len", "32", "--train", "8"]);
    assert!(run().status.success());
    let runs = RunRecord::load_dir(&out.join("runs")).unwrap();
    let lora = |run: &&RunRecord| run.method.name == "lora" && run.seed == 1;
    let id = &runs.iter().find(lora).unwrap().id;

    // Where its result would go is a folder: nothing can be written there.
    let result = out.join(format!("jobs/{id}.json"));
    std::fs::remove_file(&result).unwrap();
    std::fs::create_dir(&result).unwrap();
    std::fs::write(result.join("taken"), "").unwrap();
    std::fs::remove_dir_all(out.join("runs")).unwrap();
    let failed = run();
    assert_eq!(failed.status.code(), Some(1));
    let words = said(&failed);
    assert!(words.contains("FAILED: lora on ledger"), "{words}");
    assert!(words.contains("tries them again"), "{words}");
    let names = |out: &Path| -> Vec<String> {
        let runs = RunRecord::load_dir(&out.join("runs")).unwrap();
        runs.into_iter().map(|run| run.method.name).collect()
    };
    // Without the first seed no rate is chosen, so the second does not run.
    assert_eq!(names(&out), ["base", "base", "full", "full"]);
    let report = || std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report().contains("## Failed") && report().contains("| lora |"));
    let again = Command::new(env!("CARGO_BIN_EXE_peft-compare"))
        .arg("report")
        .arg(&out)
        .output()
        .unwrap();
    assert!(again.status.success() && report().contains("## Failed"));

    std::fs::remove_dir_all(&result).unwrap();
    assert!(run().status.success());
    assert_eq!(names(&out).len(), runs.len());
    assert!(!report().contains("## Failed") && !out.join("failures").exists());
}

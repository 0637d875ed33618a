//! What the walk-through's program does besides its commands.

#[path = "common/example.rs"]
mod example;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// The program's run on a model folder; what it says.
fn run(model: &Path, dir: &Path, arguments: &str) -> Result<String, String> {
    let data = dir.join("data.jsonl");
    let row = json!({"messages": [
        {"role": "user", "content": "Capital of Chad?"},
        {"role": "assistant", "content": "N'Djamena."},
    ]});
    fs::write(&data, row.to_string()).unwrap();
    let mut command = Command::new(example::example());
    command.arg("--model").arg(model).arg("--data").arg(data);
    command.args("--batch-size 1 --max-length 128 --rank 2 --learning-rate 0.01".split(' '));
    let output = command
        .args(arguments.split(' '))
        .current_dir(dir)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

fn losses(dir: &Path, out: &str) -> Vec<f64> {
    let outcome = fs::read(dir.join(out).join("outcome.json")).unwrap();
    let outcome: Value = serde_json::from_slice(&outcome).unwrap();
    serde_json::from_value(outcome["losses"].clone()).unwrap()
}

#[test]
fn a_run_may_begin_with_a_saved_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let model = example::model();
    let run = |arguments: &str| run(&model, dir.path(), arguments);
    run("--steps 6 --out first").unwrap();
    // With other settings a run is another one, and the error says what to do.
    let error = run("--steps 8 --out first --resume").unwrap_err();
    for part in ["`length`", "`load_adapter`", "checkpoint-6"] {
        assert!(error.contains(part), "{error}");
    }
    run("--steps 2 --adapter first/adapter --out second").unwrap();
    let [first, second] = ["first", "second"].map(|out| losses(dir.path(), out));
    assert_eq!((first.len(), second.len()), (6, 2));
    assert!(
        second[0] < first[5] && first[5] < first[0],
        "{first:?} {second:?}"
    );
    let error = run("--steps 2 --adapter nothing --out third").unwrap_err();
    assert!(error.contains("nothing"), "{error}");
}

#[test]
fn a_dated_run_is_gone_on_with_and_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(example::model()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    // Every second another text, if it asked the clock.
    let template = "{{ strftime_now('%d %b %Y %H:%M:%S') }}{% for message in messages %}{{ '<|start|>' + \
                    message['role'] + message['content'] + '<|end|>' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}";
    for (name, field, value) in [
        ("tokenizer_config.json", "chat_template", json!(template)),
        ("config.json", "max_position_embeddings", json!(1024)),
    ] {
        let file = model.join(name);
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config[field] = value;
        fs::write(file, config.to_string()).unwrap();
    }
    let run = |arguments: &str| run(&model, dir.path(), arguments);
    let time = "--time 2026-11-30T23:59:59+01:00";
    run(&format!("--steps 3 {time} --out first")).unwrap();
    run(&format!("--steps 3 {time} --out again")).unwrap();
    assert_eq!(losses(dir.path(), "first"), losses(dir.path(), "again"));
    // Long after that time: the run's own is taken.
    run("--steps 3 --out first --resume").unwrap();
    let error = run("--steps 3 --out first --resume --time 2026-12-01").unwrap_err();
    assert!(error.contains("2026-11-30T23:59:59+01:00"), "{error}");
    let error = run("--steps 3 --time noon --out third").unwrap_err();
    assert!(error.contains("2026-11-30T08:15:00+01:00"), "{error}");
}

//! Every command of `docs/finetune-llama.md` runs: on a tiny model, with short texts, for a few steps.
#![cfg(unix)]

#[path = "common/example.rs"]
mod example;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

use example::{example, model};

/// Makes the commands quick: later arguments replace earlier ones.
const QUICK: &str = "--steps 3 --batch-size 2 --max-length 24 --rank 2";

/// Commands of the walk-through's shell blocks.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    let mut command = String::new();
    for line in text.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside => {
                command.push_str(line.trim_end_matches('\\'));
                if !line.ends_with('\\') {
                    commands.push(std::mem::take(&mut command));
                }
            }
            _ => {}
        }
    }
    commands
}

/// What the walk-through calls.
const EXAMPLE: &str = "cargo xtask example finetune_llama ";

#[test]
fn every_command_of_the_walk_through_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/finetune-llama.md")).unwrap();
    let commands = commands(&text);
    let runs: Vec<&String> = commands
        .iter()
        .filter(|command| command.starts_with(EXAMPLE))
        .collect();
    assert!(runs.len() >= 4, "{commands:?}");
    for command in &commands {
        let known = [EXAMPLE, "cargo xtask fetch ", "MODEL=", "NOVELS="];
        assert!(
            known.iter().any(|start| command.starts_with(start)),
            "{command}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let novels = dir.path().join("novels");
    std::fs::create_dir(&novels).unwrap();
    for name in [
        "sense-and-sensibility",
        "pride-and-prejudice",
        "mansfield-park",
        "emma",
        "northanger-abbey",
        "persuasion",
    ] {
        let file = std::fs::File::create(novels.join(format!("{name}.txt.gz"))).unwrap();
        let mut file = GzEncoder::new(file, Compression::fast());
        for line in 0..12 {
            writeln!(
                file,
                "{name} {line}: it is a truth universally acknowledged.\n"
            )
            .unwrap();
        }
        file.finish().unwrap();
    }
    for (name, count) in [("mine.jsonl", 6), ("mine-held-out.jsonl", 2)] {
        let mut file = std::fs::File::create(dir.path().join(name)).unwrap();
        for row in 0..count {
            writeln!(
                file,
                "{{\"prompt\": \"Say {row}.\", \"completion\": \" {row}\"}}"
            )
            .unwrap();
        }
    }
    for command in runs {
        let arguments = command.strip_prefix(EXAMPLE).unwrap();
        let script = format!("\"$EXAMPLE\" {arguments} {QUICK}");
        let output = Command::new("bash")
            .args(["-c", &script])
            .current_dir(dir.path())
            .env("EXAMPLE", example())
            .env("MODEL", model())
            .env("NOVELS", &novels)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}\n{said}\n{errors}");
        assert!(
            said.contains("held-out loss before") && said.contains("held-out loss after"),
            "{said}"
        );
        println!("{command}\n{said}");
    }
    // What the walk-through says is there.
    for file in [
        "runs/austen-lora/adapter/adapter_model.safetensors",
        "runs/austen-qlora/adapter/adapter_config.json",
        "austen-merged/model.safetensors",
        "austen-merged/tokenizer.json",
    ] {
        assert!(dir.path().join(file).exists(), "{file}");
    }
}

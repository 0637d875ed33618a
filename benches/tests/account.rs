//! The account of a training step's memory agrees with what is measured, each case in its own process.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Two training steps of a case; its last line.
fn memory(case: &str) -> Value {
    let mut child = Command::new(env!("CARGO_BIN_EXE_peft-bench"))
        .args(["worker", case])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The second step has the optimizer's state that the first one made.
    child.stdin.take().unwrap().write_all(b"2\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{case}");
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn the_account_is_within_15_percent_of_what_is_live_and_resident() {
    for case in [
        "minilm/train/lora-qv",
        "minilm/train/lora-all",
        "minilm/train/full",
        "minilm/train/head",
        "minilm/train/houlsby",
        "minilm/train/bitfit",
        "minilm/train/prompt",
        "linear-4096/train/full",
        "linear-4096/train/lora-all",
    ] {
        let memory = memory(&format!("{case}/ours"));
        let bytes = |value: &Value| value.as_f64().unwrap();
        let part = |name: &str| bytes(&memory["account"][name]);
        let peak = part("weights")
            + part("optimizer")
            + (part("gradients") + part("step")).max(part("activations") + part("workspace"));
        let live = bytes(&memory["live"]);
        assert!(
            (peak / live - 1.0).abs() < 0.05,
            "{case}: {peak} accounted, {live} live"
        );
        // Resident memory is known on Linux, and near what is live where the allocator keeps what is freed.
        if cfg!(all(target_os = "linux", target_env = "gnu")) {
            let resident = bytes(&memory["peak"]) - bytes(&memory["before"]);
            assert!(
                (peak / resident - 1.0).abs() < 0.15,
                "{case}: {peak} accounted, {resident} resident"
            );
        }
    }
}

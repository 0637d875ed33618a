//! The memory model of a training step's memory agrees with what is measured, each case in its own process.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

/// How far from 1 a ratio may be.
struct Tolerance {
    /// What the model says over what is live.
    live: f64,
    /// What the model says over what is resident.
    resident: f64,
}

/// Bytes that may be resident besides: pages of the program, holes of the heap, and what a file's header took
/// while a model was loaded.
const HOLES: f64 = 48.0 * 1024.0 * 1024.0;

/// Bytes that may be live besides: blocks of matrix products, whose size `gemm` chooses by the processor's caches. They are
/// 3 to 10 MiB where a core has 2 MiB of the second level.
const PACKED_BLOCKS: f64 = 10.0 * 1024.0 * 1024.0;

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

fn bytes(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// The case's memory, after it was held against its memory model.
fn checked(case: &str, tolerance: &Tolerance) -> Value {
    let memory = memory(&format!("{case}/ours"));
    let part = |name: &str| bytes(&memory["model"][name]);
    let passes = part("activations") + part("workspace");
    let step = part("weights") + part("optimizer") + passes.max(part("gradients") + part("step"));
    let peak = step.max(part("loading"));
    let live = bytes(&memory["live"]);
    let most = peak + PACKED_BLOCKS;
    assert!(
        peak / live < 1.0 + tolerance.live && most / live > 1.0 - tolerance.live,
        "{case}: {peak} modelled, {live} live"
    );
    // Resident memory is known on Linux, and near what is live where the allocator keeps what is freed.
    if cfg!(all(target_os = "linux", target_env = "gnu")) {
        let resident = bytes(&memory["peak"]) - bytes(&memory["before"]);
        assert!(
            (peak / resident - 1.0).abs() < tolerance.resident || (resident - peak).abs() < HOLES,
            "{case}: {peak} modelled, {resident} resident"
        );
    }
    memory
}

#[test]
fn the_memory_model_is_within_15_percent_of_what_is_live_and_resident() {
    let tolerance = Tolerance {
        live: 0.05,
        resident: 0.15,
    };
    for case in [
        "minilm/train/lora-qv",
        "minilm/train/lora-all",
        "minilm/train/full",
        "minilm/train/head",
        "minilm/train/houlsby",
        "minilm/train/bitfit",
        "minilm/train/prompt",
        "minilm/train/last-1",
        "minilm/train/last-2",
        "minilm/train/last-4",
        "minilm/train/last-6",
        "linear-4096/train/full",
        "linear-4096/train/lora-all",
    ] {
        checked(case, &tolerance);
    }
}

/// No gradient goes through the model, so it keeps nothing for a backward pass. Both have their weights and the head.
#[test]
fn a_step_of_ladder_side_tuning_takes_less_memory_than_one_of_lora() {
    let [ladder, lora] = ["lst", "lora-qv"].map(|method| {
        let memory = memory(&format!("minilm/train/{method}/ours"));
        (bytes(&memory["live"]), bytes(&memory["loaded"]))
    });
    assert!(ladder.0 < 0.8 * lora.0, "{ladder:?} and {lora:?} bytes");
    // Without the weights: what a step itself takes.
    let step = |(live, loaded): (f64, f64)| live - loaded;
    assert!(
        step(ladder) < 0.6 * step(lora),
        "{ladder:?} and {lora:?} bytes"
    );
}

/// 0.5 % of all elements: gradients and moments are of these, and no matrix of differences exists.
#[test]
fn a_step_of_sparse_training_takes_less_memory_than_one_of_full_fine_tuning() {
    let [sparse, full] = ["fishmask", "full"]
        .map(|method| bytes(&memory(&format!("minilm/train/{method}/ours"))["live"]));
    assert!(sparse < 0.85 * full, "{sparse} and {full} bytes");
}

#[test]
fn the_memory_model_of_a_published_llama_is_what_is_live_and_resident() {
    if peft_testing::fetched("SmolLM2-135M-Instruct").is_none() {
        return;
    }
    // The file's header, of some MiB, is live while the model is loaded, and the smallest case has 160.
    let tolerance = Tolerance {
        live: 0.08,
        resident: 0.20,
    };
    for method in [
        "full",
        "lora-qv",
        "lora-all",
        "lora-all-checkpointed",
        "qlora-qv",
        "qlora-all",
        "qlora-all-fp4",
        "qlora-all-checkpointed",
    ] {
        let memory = checked(&format!("smollm2/train/{method}"), &tolerance);
        let weights = bytes(&memory["model"]["weights"]);
        let loaded = bytes(&memory["loaded"]);
        assert!(
            (weights / loaded - 1.0).abs() < 0.05,
            "{method}: weights of {weights}, and {loaded} after loading"
        );
    }
}

//! What is written is on the disk before it has its name, and the name before anybody goes by it: adapters,
//! models and checkpoints, by the system calls of a process that writes them.
#![cfg(target_os = "linux")]

mod common;
#[path = "common/trace.rs"]
mod trace;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{texts, words};
use peft_core::PeftModule as _;
use peft_models::{Llama, LlamaTokenizer};
use peft_reparameterization::{LoraConfig, METHODS};
use peft_train::{Length, TrainConfig, Trainer, checkpoint};

/// Where the traced process writes.
const FOLDER: &str = "PEFT_TRACED_FOLDER";
const WRITER: &str = "everything_that_is_written_is_read_again";

/// An adapter and an exported model twice, a model's own file, and a run with checkpoints, of which older ones are
/// deleted.
fn write_everything(dir: &Path) {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft-models/tests/golden/generate/model");
    let device = peft_core::device::cpu_devices().remove(0).1.autodiff();
    let base = Llama::load(&folder, &device).unwrap();
    let model = base.attach("mine", &LoraConfig::new(2)).unwrap();
    let adapter = dir.join("adapter");
    // A second time it replaces files.
    for _ in 0..2 {
        model.save_adapter("mine", &adapter).unwrap();
    }
    base.load_adapter("mine", &adapter, METHODS).unwrap();
    let tokenizer = LlamaTokenizer::load(&folder).unwrap();
    let exported = dir.join("exported");
    for _ in 0..2 {
        base.export(&exported, Some(&tokenizer)).unwrap();
    }
    LlamaTokenizer::load(&exported).unwrap();
    Llama::load(&exported, &device).unwrap();
    base.save_model(dir.join("saved.safetensors")).unwrap();
    let config = TrainConfig::new()
        .with_length(Length::Steps(3))
        .with_save_every(1)
        .with_keep_last(1)
        .with_keep_best(true);
    let data = texts(&words(), &config);
    let out = dir.join("out");
    let mut trainer = Trainer::new(config).unwrap().with_output(&out);
    trainer.train(model, &data, Some(&data)).unwrap();
    let newest = checkpoint::latest(&out).unwrap().unwrap();
    assert!(newest.ends_with("checkpoint-3"));
    assert!(newest.join(checkpoint::BEST_FILE).exists());
    assert_eq!(checkpoint::list(&out).unwrap().len(), 1);
}

#[test]
fn everything_that_is_written_is_read_again() {
    match std::env::var_os(FOLDER) {
        Some(dir) => write_everything(&PathBuf::from(dir)),
        None => write_everything(tempfile::tempdir().unwrap().path()),
    }
}

#[test]
fn files_are_on_the_disk_before_they_have_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let mut writer = Command::new(std::env::current_exe().unwrap());
    writer
        .args(["--exact", WRITER, "--test-threads", "1"])
        .env(FOLDER, &dir);
    let threads = match trace::traced(&mut writer, &dir) {
        Ok(threads) => threads,
        Err(why) => return peft_testing::skip(why),
    };
    let threads = threads.iter();
    let names: BTreeSet<String> = threads
        .flat_map(|thread| thread.names(&[".peft-", ".lock"]))
        .collect();
    for name in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "saved.safetensors",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        checkpoint::TRAINED_FILE,
        checkpoint::OPTIMIZER_FILE,
        checkpoint::SCHEDULE_FILE,
        checkpoint::BEST_FILE,
        checkpoint::STATE_FILE,
        "checkpoint-3",
    ] {
        assert!(names.contains(name), "{name} of {names:?}");
    }
}

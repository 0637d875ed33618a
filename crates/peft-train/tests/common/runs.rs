//! Runs in processes of their own that are disturbed, beside one that is not.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use peft_core::{PeftModule as _, files};
use peft_models::Llama;
use peft_reparameterization::LoraConfig;
use peft_train::{Control, Event, Length, TrainConfig, Trainer, checkpoint};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::Value;

use super::common::{texts, words};

/// The test that is a run, in the file of those that start it.
const RUN: &str = "a_run_by_itself";
/// What it is told: folder, steps, checkpoints to keep.
const TOLD: [&str; 3] = ["PEFT_RUN_OUT", "PEFT_RUN_STEPS", "PEFT_RUN_KEEP"];

/// Trains as the environment says, or three steps: a tiny Llama with LoRA and dropout, and a checkpoint every step.
/// It goes on where there is one.
pub(crate) fn train_as_told() {
    let spare = tempfile::tempdir().unwrap();
    let [out, steps, keep] = TOLD.map(|name| std::env::var(name).ok());
    let out = out.map_or(spare.path().join("out"), PathBuf::from);
    let steps = steps.map_or(3, |steps| steps.parse().unwrap());
    let device = peft_core::device::cpu_devices().remove(0).1.autodiff();
    device.seed(1);
    let lora = LoraConfig::new(1)
        .with_lora_dropout(0.1)
        .with_targets(["q_proj"]);
    let model = Llama::tiny(&device).attach("mine", &lora).unwrap();
    let config = TrainConfig::new()
        .with_length(Length::Steps(steps))
        .with_batch_size(2)
        .with_max_length(16)
        .with_learning_rate(1e-2)
        .with_save_every(1)
        .with_keep_last(keep.map_or(2, |keep| keep.parse().unwrap()));
    let data = texts(&words(), &config);
    let observer = |event: &Event| {
        if let Event::SaveFailed { step, reason } = event {
            eprintln!("step {step} was not saved: {reason}");
        }
        Control::Continue
    };
    let mut trainer = Trainer::new(config)
        .unwrap()
        .with_output(&out)
        .with_observer(observer);
    if let Some(newest) = checkpoint::latest(&out).unwrap() {
        trainer = trainer.with_resume(newest);
    }
    let (model, outcome) = match trainer.train(model, &data, None) {
        Ok(trained) => trained,
        Err(stopped) => panic!("after {} steps: {stopped}", stopped.outcome.steps),
    };
    assert_eq!(outcome.steps, steps);
    model.save_adapter("mine", out.join("adapter")).unwrap();
    let text = serde_json::to_string(&outcome).unwrap();
    files::write(out.join("outcome.json"), text).unwrap();
}

/// Files of a checkpoint that are the same in every run.
const FILES: [&str; 5] = [
    checkpoint::TRAINED_FILE,
    checkpoint::OPTIMIZER_FILE,
    checkpoint::SCHEDULE_FILE,
    "adapter_model.safetensors",
    "adapter_config.json",
];

/// What a run without disturbances gives, with a checkpoint of every step.
pub(crate) struct Whole {
    dir: tempfile::TempDir,
    steps: usize,
    pub(crate) took: Duration,
}

impl Whole {
    pub(crate) fn new(steps: usize) -> Self {
        let mut whole = Self {
            dir: tempfile::tempdir().unwrap(),
            steps,
            took: Duration::ZERO,
        };
        let mut command = whole.command(&whole.out());
        command.env(TOLD[2], "1000");
        let start = Instant::now();
        finish(command);
        whole.took = start.elapsed();
        assert_eq!(checkpoint::list(&whole.out()).unwrap().len(), steps);
        whole
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// A process that is a run into `out`.
    pub(crate) fn command(&self, out: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", RUN, "--nocapture"]);
        self.tell(&mut command, out);
        command
    }

    /// The same by a shell's script, which has the process as its arguments.
    pub(crate) fn by(&self, mut shell: Command, out: &Path) -> Command {
        shell.arg(std::env::current_exe().unwrap());
        shell.args(["--exact", RUN, "--nocapture"]);
        self.tell(&mut shell, out);
        shell
    }

    fn tell(&self, command: &mut Command, out: &Path) {
        command
            .env(TOLD[0], out)
            .env(TOLD[1], self.steps.to_string());
    }

    /// Whatever happened in `out`: all checkpoints are whole, and those of the undisturbed run. Gives the steps of
    /// the last one.
    pub(crate) fn is_as_far_as(&self, out: &Path) -> usize {
        let found = checkpoint::list(out).unwrap();
        for (step, path) in &found {
            let name = path.file_name().unwrap();
            let expected = self.out().join(name);
            for file in FILES {
                let [ours, theirs] =
                    [path, &expected].map(|dir| fs::read(dir.join(file)).unwrap_or_default());
                assert!(ours == theirs, "{}/{file} differs", path.display());
            }
            assert_eq!(state(path)["step"], *step);
            assert_eq!(state(path)["losses"], state(&expected)["losses"]);
        }
        let last = found.last().map(|(step, _)| *step);
        let latest = checkpoint::latest(out).unwrap();
        assert_eq!(latest, found.last().map(|(_, path)| path.clone()));
        last.unwrap_or(0)
    }

    /// Lets the run in `out` end: the numbers are those of the undisturbed one.
    pub(crate) fn ends_alike(&self, out: &Path) {
        finish(self.command(out));
        assert_eq!(self.is_as_far_as(out), self.steps);
        let outcome = |out: &Path| json(&out.join("outcome.json"));
        let [ours, theirs] = [outcome(out), outcome(&self.out())];
        for field in ["steps", "ending", "losses", "tokens"] {
            assert_eq!(ours[field], theirs[field], "{field}");
        }
        assert_eq!(ours["losses"].as_array().unwrap().len(), self.steps);
        let adapter = |out: &Path| fs::read(out.join("adapter/adapter_model.safetensors")).unwrap();
        assert!(adapter(out) == adapter(&self.out()));
        // Nothing is left of what was begun, but for a file that a kill may have left beside the checkpoints.
        let entries = fs::read_dir(out).unwrap();
        let names: BTreeSet<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".peft-"))
            .collect();
        let expected = [
            ".lock".into(),
            "adapter".into(),
            "outcome.json".into(),
            format!("checkpoint-{}", self.steps - 1),
            format!("checkpoint-{}", self.steps),
        ];
        assert_eq!(names, BTreeSet::from(expected));
    }
}

/// Runs a command that must succeed.
pub(crate) fn finish(mut command: Command) {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{errors}");
}

pub(crate) fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

fn state(checkpoint: &Path) -> Value {
    json(&checkpoint.join(checkpoint::STATE_FILE))
}

/// Says nothing.
pub(crate) fn silent(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::null()).stderr(Stdio::null())
}

/// Other numbers in every run of the tests; the seed is printed.
pub(crate) fn random() -> StdRng {
    let seed = std::env::var("PEFT_SEED")
        .ok()
        .map(|seed| seed.parse().unwrap());
    let seed: u64 = seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos())
    });
    println!("PEFT_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// How often a test is repeated: `PEFT_ROUNDS` times, or `default` times.
pub(crate) fn rounds(default: usize) -> usize {
    let rounds = std::env::var("PEFT_ROUNDS").ok();
    rounds.map_or(default, |rounds| rounds.parse().unwrap())
}

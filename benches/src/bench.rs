//! Runs the workers in turn and prints the ratios.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::case::{Case, Shape};
use crate::process::{Done, Worker};
use crate::ratio::Ratio;
use crate::ratios::GROUPS;
use crate::{assets, every_method, every_step, table};

type Failure = Box<dyn std::error::Error>;

/// Before a turn, so that threads of the process before have gone to sleep.
const PAUSE: Duration = Duration::from_millis(60);

pub(crate) struct Settings {
    pub(crate) rounds: usize,
    pub(crate) only: String,
    pub(crate) device: String,
    pub(crate) json: Option<PathBuf>,
}

pub(crate) fn run(settings: &Settings) -> Result<(), Failure> {
    let peer = env::var_os("PEFT_PYTHON").is_some_and(|python| !python.is_empty());
    if !peer {
        println!("PEFT_PYTHON names no Python with torch and peft: Hugging Face is left out.");
    }
    let units = units();
    println!(
        "Units of the processor: f32 {}, bfloat16 {}.",
        units[0], units[1]
    );
    let mut ratios = BTreeMap::new();
    let mut cases: BTreeMap<String, Value> = BTreeMap::new();
    let mut matched = false;
    for (title, group) in GROUPS {
        let chosen: Vec<Ratio> = group
            .iter()
            .filter(|ratio| ratio.name.contains(&settings.only))
            .filter(|ratio| peer || !ratio.has_peer())
            .copied()
            .collect();
        if chosen.is_empty() {
            continue;
        }
        matched = true;
        if chosen.iter().any(needs_llama)
            && let Err(missing) = assets::llama()
        {
            println!("\n{title}\n\n  left out: {missing}");
            continue;
        }
        let done = measure(title, &chosen, settings)?;
        table::print(title, &chosen, &done);
        for ratio in chosen {
            if let Some(spread) = ratio.of(&done) {
                ratios.insert(ratio.name.to_string(), spread);
            }
        }
        cases.extend(
            done.values()
                .map(|done| (done.case.to_string(), done.json())),
        );
    }
    let latencies = every_method::run(&settings.only, settings.rounds, &settings.device)?;
    for latency in &latencies {
        matched = true;
        ratios.insert(latency.name.clone(), latency.ratio);
    }
    let steps = every_step::run(&settings.only, settings.rounds, &settings.device)?;
    for step in &steps {
        matched = true;
        ratios.insert(step.name.clone(), step.ratio);
    }
    if !matched {
        return Err(format!("no ratio's name contains `{}`", settings.only).into());
    }
    if let Some(path) = &settings.json {
        write(
            path,
            &json!({
                "units": units,
                "ratios": ratios,
                "cases": cases,
                "latencies": latencies,
                "steps": steps,
            }),
        )?;
    }
    Ok(())
}

/// What `f32` and bfloat16 are multiplied with.
fn units() -> [&'static str; 2] {
    #[cfg(target_arch = "x86_64")]
    let single = if is_x86_feature_detected!("avx512f") {
        "avx512f"
    } else if is_x86_feature_detected!("fma") {
        "avx2 and fma"
    } else {
        "without vectors of 8"
    };
    #[cfg(not(target_arch = "x86_64"))]
    let single = std::env::consts::ARCH;
    [single, peft::core::ops::bf16_unit().unwrap_or("none")]
}

/// Writes JSON to a file.
pub(crate) fn write(path: &Path, value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)?;
    Ok(peft_core::files::write(path, text + "\n")?)
}

fn needs_llama(ratio: &Ratio) -> bool {
    let [over, under] = ratio.cases();
    over.shape == Shape::SmolLm2 || under.shape == Shape::SmolLm2
}

/// The language model as its peers read it, written by a process of its own.
fn exported(device: &str) -> Result<TempDir, Failure> {
    let folder = tempfile::tempdir()?;
    let status = Command::new(env::current_exe()?)
        .args(["--device", device, "export"])
        .arg(folder.path())
        .status()?;
    if status.success() {
        Ok(folder)
    } else {
        Err("the language model could not be exported for Hugging Face".into())
    }
}

/// Runs the cases that the ratios name, in turn.
fn measure(
    title: &str,
    ratios: &[Ratio],
    settings: &Settings,
) -> Result<HashMap<Case, Done>, Failure> {
    let mut cases: Vec<Case> = Vec::new();
    for case in ratios.iter().flat_map(Ratio::cases) {
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    let device = settings.device.as_str();
    let reads = |case: &Case| case.engine.is_peer() && case.shape == Shape::SmolLm2;
    let folder = if cases.iter().any(reads) {
        Some(exported(device)?)
    } else {
        None
    };
    let bar = ProgressBar::new((cases.len() * (settings.rounds + 1)) as u64);
    bar.set_style(ProgressStyle::with_template(
        "{msg} [{bar:30}] {pos}/{len} {elapsed}",
    )?);
    bar.set_message(title.to_string());
    let mut workers = Vec::new();
    for case in cases {
        let folder = folder.as_ref().map(TempDir::path);
        match Worker::start(case, device, folder.filter(|_| reads(&case))) {
            Ok(worker) => workers.push(worker),
            // A Python without the packages is no reason to give up the rest.
            Err(error) if case.engine.is_peer() => {
                bar.println(format!("left out: {error}"));
            }
            Err(error) => return Err(error),
        }
        bar.inc(1);
    }
    // All of one group are of one pass, but for a few forward passes among training steps.
    let turns = workers.iter().map(|worker| worker.case.turns()).min();
    let rounds = settings.rounds * turns.unwrap_or(1);
    bar.set_length((workers.len() * (rounds + 1)) as u64);
    for round in 0..rounds {
        // The order changes, so that no case always follows the same.
        let len = workers.len();
        for index in 0..len {
            std::thread::sleep(PAUSE);
            let index = if round % 2 == 0 {
                index
            } else {
                len - 1 - index
            };
            workers[index].turn()?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    workers
        .into_iter()
        .map(|worker| {
            let done = worker.finish()?;
            Ok((done.case, done))
        })
        .collect()
}

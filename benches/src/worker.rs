//! One case in a process of its own: says `ready`, then runs as many iterations as each line asks
//! for and prints their times; says how much memory it needed when its input ends.

use std::io::{self, BufRead as _, Write as _};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::allocator::ALLOCATOR;
use crate::case::Case;
use crate::memory_model::MemoryModel;
use crate::models;

type Failure = Box<dyn std::error::Error>;

/// What a worker prints first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// Tokens in one iteration.
    pub(crate) tokens: usize,
    /// Elements that are trained.
    pub(crate) trainable: usize,
    /// Bytes of the model's own weights as they are stored, adapters not counted; 0 from peers.
    #[serde(default)]
    pub(crate) weights: u64,
    /// Bits of a weight in the quantized matrices, scales included.
    #[serde(default)]
    pub(crate) bits: Option<f64>,
}

/// What a worker prints for each line it reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Times {
    pub(crate) seconds: Vec<f64>,
}

/// What a worker prints last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Highest resident bytes of the process.
    pub(crate) peak: u64,
    /// Resident bytes before the model was made: program, libraries, thread stacks.
    pub(crate) before: u64,
    /// Most bytes that were allocated at one time; what the resident ones have more is the
    /// allocator's and the program's.
    #[serde(default)]
    pub(crate) live: u64,
    /// Bytes that the model took once it was made, before the first step.
    #[serde(default)]
    pub(crate) loaded: u64,
    /// What the memory model says the live bytes are made of.
    #[serde(default)]
    pub(crate) model: Option<MemoryModel>,
}

/// A line of `/proc/self/status` in bytes; 0 on systems without it.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim_start_matches(':').split_whitespace().next())
        .and_then(|kibibytes| kibibytes.parse::<u64>().ok())
        .map_or(0, |kibibytes| kibibytes * 1024)
}

fn say(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}

pub(crate) fn run(case: Case, device: &str) -> Result<(), Failure> {
    let before = status("VmRSS");
    let allocated = ALLOCATOR.allocated();
    let mut work = models::work(case, device)?;
    let loaded = ALLOCATOR.allocated().saturating_sub(allocated);
    say(&Ready {
        tokens: work.tokens,
        trainable: work.trainable,
        weights: work.weights,
        bits: work.bits,
    })?;
    for line in io::stdin().lock().lines() {
        let count: usize = line?.trim().parse()?;
        let seconds = (0..count)
            .map(|_| {
                let start = Instant::now();
                (work.iterate)()?;
                Ok(start.elapsed().as_secs_f64())
            })
            .collect::<Result<_, Failure>>()?;
        say(&Times { seconds })?;
    }
    say(&Memory {
        peak: status("VmHWM"),
        before,
        live: ALLOCATOR.max_allocated() as u64,
        loaded: loaded as u64,
        model: work.memory_model,
    })?;
    Ok(())
}

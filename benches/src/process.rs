//! The process of a case, and what it measured.

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::case::{Case, Pass};
use crate::worker::{Memory, Ready, Times};

type Failure = Box<dyn std::error::Error>;

/// About how many seconds one turn of one process takes.
const TURN: f64 = 0.5;
/// Forward passes are short: so many times more turns, and so many times shorter, put what is compared
/// closer together in time.
const INFERENCE_TURNS: usize = 5;

impl Case {
    /// How many turns it takes in a round.
    pub(crate) fn turns(self) -> usize {
        match self.pass {
            Pass::Train => 1,
            Pass::Infer => INFERENCE_TURNS,
        }
    }
}

/// A running worker.
pub(crate) struct Worker {
    pub(crate) case: Case,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    ready: Ready,
    /// Iterations in a turn.
    count: usize,
    /// Median seconds of an iteration, turn by turn.
    medians: Vec<f64>,
}

impl Worker {
    /// Starts a case on a device; peers read a model from `exported`.
    pub(crate) fn start(
        case: Case,
        device: &str,
        exported: Option<&Path>,
    ) -> Result<Self, Failure> {
        let mut command = if case.engine.is_peer() {
            let python = env::var_os("PEFT_PYTHON").ok_or("PEFT_PYTHON is not set")?;
            let mut command = Command::new(python);
            command
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/hf_peft.py"))
                .arg(case.to_string())
                .args(exported)
                // Nothing is asked of a hub.
                .env("HF_HUB_OFFLINE", "1")
                .env("PYTHONWARNINGS", "ignore");
            command
        } else {
            let mut command = Command::new(env::current_exe()?);
            command.args(["--device", device, "worker", &case.to_string()]);
            command
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{case}: {error}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a worker without pipes".into());
        };
        let mut worker = Self {
            case,
            child,
            input,
            output: BufReader::new(output),
            ready: Ready::default(),
            count: 1,
            medians: Vec::new(),
        };
        worker.ready = worker.answer()?;
        // The first iterations allocate what the others reuse.
        worker.turn()?;
        worker.turn()?;
        let seconds = worker.turn()?;
        let turn = TURN / case.turns() as f64;
        worker.count = ((turn / seconds).round() as usize).clamp(2, 200);
        worker.medians.clear();
        Ok(worker)
    }

    fn answer<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, Failure> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            return Err(format!("{} ended without an answer", self.case).into());
        }
        serde_json::from_str(&line)
            .map_err(|error| format!("{} answered `{}`: {error}", self.case, line.trim()).into())
    }

    /// One turn; returns the median of its iterations.
    pub(crate) fn turn(&mut self) -> Result<f64, Failure> {
        writeln!(self.input, "{}", self.count)?;
        self.input.flush()?;
        let Times { mut seconds } = self.answer()?;
        let median = median(&mut seconds);
        self.medians.push(median);
        Ok(median)
    }

    /// Ends the process.
    pub(crate) fn finish(self) -> Result<Done, Failure> {
        let Self {
            case,
            mut child,
            input,
            mut output,
            ready,
            medians,
            ..
        } = self;
        drop(input);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let memory: Memory = serde_json::from_str(&line)
            .map_err(|error| format!("{case} answered `{}`: {error}", line.trim()))?;
        let _ = child.wait();
        Ok(Done {
            case,
            ready,
            medians,
            memory,
        })
    }
}

/// What a worker measured.
pub(crate) struct Done {
    pub(crate) case: Case,
    pub(crate) ready: Ready,
    /// Median seconds of an iteration, turn by turn.
    pub(crate) medians: Vec<f64>,
    pub(crate) memory: Memory,
}

impl Done {
    /// Median seconds of an iteration.
    pub(crate) fn seconds(&self) -> f64 {
        median(&mut self.medians.clone())
    }

    /// For the file.
    pub(crate) fn json(&self) -> Value {
        let seconds = self.seconds();
        json!({
            "step_seconds": seconds,
            "tokens_per_second": self.ready.tokens as f64 / seconds,
            "trainable": self.ready.trainable,
            "weight_bytes": self.ready.weights,
            "bits_per_weight": self.ready.bits,
            "peak_bytes": self.memory.peak,
            "live_bytes": self.memory.live,
            "account_bytes": self.memory.model.map(|model| model.peak()),
        })
    }
}

/// The median; sorts the values.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

//! Runs the workers in turn and prints the ratios.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::case::{Case, Engine, Pass};
use crate::ratios::{GROUPS, Measure, Needed, Ratio};
use crate::worker::{Memory, Ready, Times};

type Failure = Box<dyn std::error::Error>;

/// About how many seconds one turn of one process takes.
const TURN: f64 = 0.5;
/// Forward passes are short: so many times more turns, and so many times shorter, put what is compared
/// closer together in time.
const INFERENCE_TURNS: usize = 5;
/// Before a turn, so that threads of the process before have gone to sleep.
const PAUSE: Duration = Duration::from_millis(60);

pub(crate) struct Settings {
    pub(crate) rounds: usize,
    pub(crate) only: String,
    pub(crate) device: String,
    pub(crate) json: Option<PathBuf>,
}

/// A ratio over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// A running worker.
struct Worker {
    case: Case,
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
    fn start(case: Case, settings: &Settings) -> Result<Self, Failure> {
        let mut command = if case.engine == Engine::Hf {
            let python = env::var_os("PEFT_PYTHON").ok_or("PEFT_PYTHON is not set")?;
            let mut command = Command::new(python);
            command
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/hf_peft.py"))
                .arg(case.to_string())
                // Nothing is asked of a hub.
                .env("HF_HUB_OFFLINE", "1")
                .env("PYTHONWARNINGS", "ignore");
            command
        } else {
            let mut command = Command::new(env::current_exe()?);
            command.args(["--device", &settings.device, "worker", &case.to_string()]);
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
            ready: Ready {
                tokens: 0,
                trainable: 0,
            },
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
        serde_json::from_str(&line)
            .map_err(|error| format!("{} answered `{}`: {error}", self.case, line.trim()).into())
    }

    /// One turn; returns the median of its iterations.
    fn turn(&mut self) -> Result<f64, Failure> {
        writeln!(self.input, "{}", self.count)?;
        self.input.flush()?;
        let Times { mut seconds } = self.answer()?;
        let median = median(&mut seconds);
        self.medians.push(median);
        Ok(median)
    }

    fn finish(mut self) -> Result<Done, Failure> {
        drop(self.input);
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let memory: Memory = serde_json::from_str(&line)
            .map_err(|error| format!("{} answered `{}`: {error}", self.case, line.trim()))?;
        let _ = self.child.wait();
        Ok(Done {
            case: self.case,
            ready: self.ready,
            medians: self.medians,
            memory,
        })
    }
}

/// What a worker measured.
struct Done {
    case: Case,
    ready: Ready,
    medians: Vec<f64>,
    memory: Memory,
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

fn spread(mut values: Vec<f64>) -> Spread {
    Spread {
        median: median(&mut values),
        min: values[0],
        max: values[values.len() - 1],
    }
}

impl Case {
    /// How many turns it takes in a round.
    fn turns(self) -> usize {
        match self.pass {
            Pass::Train => 1,
            Pass::Infer => INFERENCE_TURNS,
        }
    }
}

impl Ratio {
    fn of(&self, done: &HashMap<Case, Done>) -> Option<Spread> {
        let (over, under) = (done.get(&self.over)?, done.get(&self.under)?);
        Some(spread(match self.measure {
            Measure::Time => over
                .medians
                .iter()
                .zip(&under.medians)
                .map(|(over, under)| over / under)
                .collect(),
            Measure::Memory => vec![over.memory.peak as f64 / under.memory.peak as f64],
        }))
    }
}

impl Needed {
    fn holds(self, found: Spread) -> Option<bool> {
        match self {
            Self::AtLeast(bound) => Some(found.median >= bound),
            Self::AtMost(bound) => Some(found.median <= bound),
            Self::One => {
                Some((found.min <= 1.0 && found.max >= 1.0) || (found.median - 1.0).abs() <= 0.02)
            }
            Self::Nothing => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {bound:.2}"),
            Self::AtMost(bound) => format!("<= {bound:.2}"),
            Self::One => "1.00".to_string(),
            Self::Nothing => String::new(),
        }
    }
}

pub(crate) fn run(settings: &Settings) -> Result<(), Failure> {
    let peer = env::var_os("PEFT_PYTHON").is_some_and(|python| !python.is_empty());
    if !peer {
        println!("PEFT_PYTHON names no Python with torch and peft: Hugging Face is left out.");
    }
    let mut ratios = BTreeMap::new();
    for (title, group) in GROUPS {
        let chosen: Vec<Ratio> = group
            .iter()
            .filter(|ratio| ratio.name.contains(&settings.only))
            .filter(|ratio| {
                peer || [ratio.over, ratio.under]
                    .iter()
                    .all(|c| c.engine != Engine::Hf)
            })
            .copied()
            .collect();
        if chosen.is_empty() {
            continue;
        }
        let done = measure(title, &chosen, settings)?;
        print_group(title, &chosen, &done);
        for ratio in chosen {
            if let Some(spread) = ratio.of(&done) {
                ratios.insert(ratio.name, spread);
            }
        }
    }
    if ratios.is_empty() {
        return Err(format!("no ratio's name contains `{}`", settings.only).into());
    }
    if let Some(path) = &settings.json {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "ratios": ratios }))?;
        std::fs::write(path, text + "\n")
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Runs the cases that the ratios name, in turn.
fn measure(
    title: &str,
    ratios: &[Ratio],
    settings: &Settings,
) -> Result<HashMap<Case, Done>, Failure> {
    let mut cases: Vec<Case> = Vec::new();
    for case in ratios.iter().flat_map(|ratio| [ratio.over, ratio.under]) {
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    let bar = ProgressBar::new((cases.len() * (settings.rounds + 1)) as u64);
    bar.set_style(ProgressStyle::with_template(
        "{msg} [{bar:30}] {pos}/{len} {elapsed}",
    )?);
    bar.set_message(title.to_string());
    let mut workers = Vec::new();
    for case in cases {
        match Worker::start(case, settings) {
            Ok(worker) => workers.push(worker),
            // A Python without the packages is no reason to give up the rest.
            Err(error) if case.engine == Engine::Hf => {
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

fn print_group(title: &str, ratios: &[Ratio], done: &HashMap<Case, Done>) {
    println!("\n{title}\n");
    let mut rows: Vec<&Done> = done.values().collect();
    rows.sort_by_key(|done| done.case.to_string());
    println!(
        "  {:<38} {:>10} {:>10} {:>12} {:>9} {:>9} {:>9}",
        "case", "median ms", "tokens/s", "trainable", "peak MiB", "live", "account"
    );
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for Done {
        case,
        ready,
        medians,
        memory,
    } in rows
    {
        let seconds = median(&mut medians.clone());
        let live = match memory.live {
            0 => String::new(),
            live => format!("{:.0}", mib(live)),
        };
        let account = memory.account.map_or(String::new(), |account| {
            format!("{:.0}", mib(account.peak()))
        });
        println!(
            "  {:<38} {:>10.1} {:>10.0} {:>12} {:>9.0} {:>9} {:>9}",
            case.to_string(),
            seconds * 1e3,
            ready.tokens as f64 / seconds,
            ready.trainable,
            mib(memory.peak),
            live,
            account,
        );
    }
    println!(
        "\n  {:<34} {:>7}  {:<15} {:<8}",
        "ratio", "median", "(min - max)", "needed"
    );
    for ratio in ratios {
        let Some(found) = ratio.of(done) else {
            continue;
        };
        let verdict = match ratio.needed.holds(found) {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        println!(
            "  {:<34} {:>7.3}  ({:.3} - {:.3}) {:<8} {verdict}",
            ratio.name,
            found.median,
            found.min,
            found.max,
            ratio.needed.text()
        );
    }
}

//! Plans the jobs of a suite, runs what is missing in processes of their own, chooses learning
//! rates on the dev split, and writes records.

mod plan;
mod prepare;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::definition::{Definitions, MethodEntry, Suite, Task, Tune, family_key, overridden};
use crate::error::io;
use crate::job::{Inputs, Job, Outcome, hash};
use crate::progress::Progress;
use crate::record::{Method, Model, RunRecord, SCHEMA, Trial};
use crate::registry::Registry;
use crate::{Error, Result};

/// What to run and where to put it.
#[derive(Clone, Debug)]
pub struct Order {
    /// The suite, with the user's changes.
    pub suite: Suite,
    /// Its tasks, overrides applied.
    pub tasks: Vec<Task>,
    /// Its methods.
    pub methods: Vec<MethodEntry>,
    /// Device, as in `flex`.
    pub device: String,
    /// Folder of the results.
    pub out: PathBuf,
    /// The methods that entries may configure.
    registry: Registry,
    /// What the tasks read, by their names; filled by [`prepare`](Self::prepare).
    inputs: HashMap<String, Inputs>,
    /// What does not fit a task's model; filled by [`prepare`](Self::prepare).
    left_out: Vec<LeftOut>,
}

/// A method that has no place on a task's model.
#[derive(Clone, Debug)]
struct LeftOut {
    task: String,
    method: String,
    /// The words of the library.
    reason: String,
}

impl Order {
    /// A suite as it is defined.
    ///
    /// # Errors
    ///
    /// Unknown names, overrides that do not fit.
    pub fn new(definitions: &Definitions, suite: &Suite, device: &str, out: &Path) -> Result<Self> {
        let tasks = suite
            .tasks
            .iter()
            .map(|name| overridden(definitions.task(name)?, &suite.overrides))
            .collect::<Result<_>>()?;
        Ok(Self {
            suite: suite.clone(),
            tasks,
            methods: definitions
                .chosen(&suite.methods)?
                .into_iter()
                .cloned()
                .collect(),
            device: device.to_string(),
            out: out.to_path_buf(),
            registry: definitions.registry.clone(),
            inputs: HashMap::new(),
            left_out: Vec::new(),
        })
    }

    /// The methods that run on a task.
    fn methods_of(&self, task: &Task) -> impl Iterator<Item = &MethodEntry> {
        self.methods.iter().filter(move |method| {
            let out = |left: &LeftOut| left.task == task.name && left.method == method.name;
            method.kinds.contains(&task.kind) && !self.left_out.iter().any(out)
        })
    }

    /// The seeds that a method runs with: what draws nothing runs once.
    fn seeds_of(&self, method: &MethodEntry) -> &[u64] {
        if method.trains() {
            &self.suite.seeds
        } else {
            &self.suite.seeds[..1]
        }
    }

    fn job(&self, task: &Task, method: &MethodEntry, learning_rate: f64, seed: u64) -> Job {
        Job {
            task: task.clone(),
            method: method.clone(),
            learning_rate,
            seed,
            device: self.device.clone(),
            inputs: self.inputs.get(&task.name).cloned().unwrap_or_default(),
        }
    }

    /// The learning rates that are tried on a task.
    fn grid(&self, task: &Task, method: &MethodEntry) -> Vec<f64> {
        if !method.trains() {
            return vec![0.0];
        }
        let rates = method.learning_rates.iter().map(|rate| {
            let rate = rate * task.training.learning_rate_factor;
            // 3e-4 times 3 is 9e-4 and not 8.999999999999999e-4.
            format!("{rate:.3e}").parse().unwrap_or(rate)
        });
        let rates: Vec<f64> = rates.collect();
        match self.suite.tune {
            Tune::FirstSeed => rates,
            Tune::None => vec![rates[rates.len() / 2]],
        }
    }

    /// How many runs there are, trials included: the winning trial is the first seed's run.
    fn total(&self) -> usize {
        let of_task = |task: &Task| {
            let methods = self.methods_of(task);
            let runs = methods
                .map(|method| self.grid(task, method).len() + self.seeds_of(method).len() - 1);
            runs.sum::<usize>()
        };
        self.tasks.iter().map(of_task).sum()
    }

    fn jobs_dir(&self) -> PathBuf {
        self.out.join("jobs")
    }

    fn runs_dir(&self) -> PathBuf {
        self.out.join("runs")
    }

    /// Runs what is missing and returns the records, old and new.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] when `stop` was set: what is finished is kept. [`Error::Job`] with the
    /// last words of a failed run.
    pub fn run(&self, stop: &AtomicBool) -> Result<Vec<RunRecord>> {
        // Two at once would do the work twice and spoil each other's timings.
        peft_core::files::create_dir(&self.out)?;
        let path = self.out.join(".lock");
        let lock = std::fs::File::create(&path).map_err(io(&path))?;
        if lock.try_lock().is_err() {
            return Err(Error::Busy {
                out: self.out.clone(),
            });
        }
        let progress = Progress::new(self.total());
        let mut records = Vec::new();
        for task in &self.tasks {
            for method in self.methods_of(task) {
                records.extend(self.compare(task, method, &progress, stop)?);
            }
        }
        progress.finish();
        Ok(records)
    }

    /// All runs of one method on one task.
    fn compare(
        &self,
        task: &Task,
        method: &MethodEntry,
        progress: &Progress,
        stop: &AtomicBool,
    ) -> Result<Vec<RunRecord>> {
        let first = self.suite.seeds[0];
        let mut trials = Vec::new();
        for rate in self.grid(task, method) {
            trials.push(self.outcome(&self.job(task, method, rate, first), progress, stop)?);
        }
        // The first of equals: the smaller rate, as grids rise.
        let metric = task.kind.metric();
        let score = |trial: &Outcome| metric.oriented(trial.dev);
        let best = trials
            .iter()
            .filter(|trial| trial.dev.is_finite())
            .reduce(|best, trial| {
                if score(trial) > score(best) {
                    trial
                } else {
                    best
                }
            })
            .unwrap_or(&trials[0]);
        if !method.trains() {
            // One run stands for all seeds, so that differences to it can be paired.
            let records = self.suite.seeds.iter().map(|seed| {
                let mut outcome = best.clone();
                outcome.job.seed = *seed;
                self.record(&outcome, &[])
            });
            return records.collect();
        }
        let tuning: Vec<Trial> = trials
            .iter()
            .map(|trial| Trial {
                learning_rate: trial.job.learning_rate,
                dev: trial.dev,
            })
            .collect();
        let mut records = vec![self.record(best, &tuning)?];
        for seed in &self.suite.seeds[1..] {
            let job = self.job(task, method, best.job.learning_rate, *seed);
            let outcome = self.outcome(&job, progress, stop)?;
            records.push(self.record(&outcome, &tuning)?);
        }
        Ok(records)
    }

    /// A job's outcome, from its file or by running it.
    fn outcome(&self, job: &Job, progress: &Progress, stop: &AtomicBool) -> Result<Outcome> {
        let id = job.id();
        if let Some(outcome) = Outcome::read(&self.jobs_dir(), &id) {
            progress.known(&outcome);
            return Ok(outcome);
        }
        let stopped = || Error::Stopped {
            done: progress.done(),
            total: self.total(),
        };
        if stop.load(Ordering::SeqCst) {
            return Err(stopped());
        }
        progress.start(&job.label());
        let mut child = self.spawn(job)?;
        let last = follow(&mut child, progress, stop);
        let status = child.wait().map_err(io(&self.out))?;
        if stop.load(Ordering::SeqCst) {
            return Err(stopped());
        }
        match Outcome::read(&self.jobs_dir(), &id) {
            Some(outcome) if status.success() => {
                progress.end(&outcome);
                Ok(outcome)
            }
            _ => Err(Error::Job {
                job: job.label(),
                reason: last.unwrap_or(status.to_string()),
            }),
        }
    }

    /// Each run has a process of its own, so that its peak memory is its own.
    fn spawn(&self, job: &Job) -> Result<Child> {
        let program = std::env::current_exe().map_err(io(Path::new("peft-compare")))?;
        Command::new(&program)
            .arg("run-job")
            .arg("--out")
            .arg(self.jobs_dir())
            .arg(serde_json::to_string(job).expect("plain data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io(&program))
    }

    fn record(&self, outcome: &Outcome, tuning: &[Trial]) -> Result<RunRecord> {
        let job = &outcome.job;
        let configured = job.configured(&self.registry)?;
        let info = configured.info();
        let definition = job.definition();
        let record = RunRecord {
            schema: SCHEMA,
            id: job.id(),
            suite: self.suite.name.clone(),
            task: job.task.name.clone(),
            kind: job.task.kind,
            // What the suite says comes first: it may have cut the task short.
            task_analysis: format!(
                "{}\n\n{}",
                self.suite.analysis.trim(),
                job.task.analysis.trim()
            )
            .trim_start()
            .to_string(),
            model: Model {
                name: job.task.model.name(),
                parameters: outcome.model_parameters,
                source: job.task.model.source(),
            },
            method: Method {
                name: job.method.name.clone(),
                title: info.title.to_string(),
                family: family_key(info.family),
                reference: info.reference.to_string(),
                config: configured.to_json(),
            },
            seed: job.seed,
            learning_rate: job.learning_rate,
            tuning: tuning.to_vec(),
            definition_hash: hash(&definition),
            definition,
            git: outcome.git.clone(),
            environment: outcome.environment.clone(),
            started_at: outcome.started_at.clone(),
            wall_s: outcome.wall_s,
            rows: outcome.rows,
            metric: job.task.kind.metric(),
            baseline: outcome.baseline,
            curve: outcome.curve.clone(),
            dev: outcome.dev,
            test: outcome.test,
            forgetting: outcome.forgetting,
            counts: outcome.counts,
            adapter_bytes: outcome.adapter_bytes,
            step_s: outcome.step_s,
            tokens_per_s: outcome.tokens_per_s,
            memory: outcome.memory,
            latency_ms: outcome.latency_ms,
            rank_of_change: configured.max_rank().map(|rank| rank as u64),
            notes: outcome.notes.clone(),
        };
        record.write(&self.runs_dir())?;
        Ok(record)
    }
}

/// Reads a job's messages until it ends; returns its last words of trouble.
fn follow(child: &mut Child, progress: &Progress, stop: &AtomicBool) -> Option<String> {
    let (stdout, mut stderr) = (child.stdout.take()?, child.stderr.take()?);
    // Read beside the progress: a full pipe would block the job.
    let words = std::thread::spawn(move || {
        let mut words = Vec::new();
        let _ = std::io::copy(&mut stderr, &mut words);
        String::from_utf8_lossy(&words).into_owned()
    });
    for line in BufReader::new(stdout)
        .lines()
        .map_while(std::result::Result::ok)
    {
        let fields: Vec<f64> = line
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        if let [step, steps, loss] = fields[..] {
            progress.step(step as u64, steps as u64, loss);
        }
        if stop.load(Ordering::SeqCst) {
            // The job may not have been told: a signal to this process alone is not passed on.
            let _ = child.kill();
        }
    }
    let words = words.join().unwrap_or_default();
    let lines: Vec<&str> = words.trim().lines().collect();
    let last = lines[lines.len().saturating_sub(12)..].join("\n");
    (!last.is_empty()).then_some(last)
}

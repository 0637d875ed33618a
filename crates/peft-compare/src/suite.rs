//! Plans the jobs of a suite, runs what is missing in processes of their own, chooses learning
//! rates on the dev split, and writes records.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::definition::{Definitions, MethodEntry, Suite, Task, Tune, family_key, overridden};
use crate::error::io;
use crate::job::{Inputs, Job, Outcome, hash, model_folder, rows};
use crate::progress::Progress;
use crate::record::{Method, Metric, Model, Rows, RunRecord, SCHEMA, Trial};
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
    /// What the tasks read, by their names; filled by [`prepare`](Self::prepare).
    inputs: HashMap<String, Inputs>,
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
            inputs: HashMap::new(),
        })
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

    /// Reads what the tasks need and refuses all that can be refused, before any time is spent.
    ///
    /// # Errors
    ///
    /// Settings that cannot work, data or models that are not here or not what is expected,
    /// configurations that their method refuses.
    pub fn prepare(&mut self) -> Result<()> {
        let refuse = |reason: &str| {
            Err(Error::Definition {
                file: format!("suite {}", self.suite.name),
                reason: reason.into(),
            })
        };
        if self.suite.seeds.is_empty() {
            return refuse("seeds: there must be one at least");
        }
        if self.tasks.is_empty() || self.methods.is_empty() {
            return refuse("there must be a task and a method at least");
        }
        for task in &self.tasks {
            let training = &task.training;
            let positive = [training.learning_rate_factor, training.clip_norm];
            if training.epochs == 0 || training.batch_size == 0 || task.max_len < 3 {
                return refuse("epochs and batch_size must be at least 1, max_len at least 3");
            }
            if !positive.iter().all(|value| *value > 0.0) || !(0.0..1.0).contains(&training.warmup)
            {
                return refuse(
                    "learning_rate_factor and clip_norm must be above 0, warmup in [0, 1)",
                );
            }
        }
        for task in self.tasks.clone() {
            self.inputs.insert(task.name.clone(), Inputs::of(&task)?);
            for method in &self.methods {
                self.job(&task, method, 1.0, 0)
                    .configured(&["classifier"])?;
            }
        }
        Ok(())
    }

    /// The learning rates that are tried on a task.
    fn grid(&self, task: &Task, method: &MethodEntry) -> Vec<f64> {
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
        let runs = |task, method| self.grid(task, method).len() + self.suite.seeds.len() - 1;
        let of_task = |task| {
            self.methods
                .iter()
                .map(|method| runs(task, method))
                .sum::<usize>()
        };
        self.tasks.iter().map(of_task).sum()
    }

    fn jobs_dir(&self) -> PathBuf {
        self.out.join("jobs")
    }

    fn runs_dir(&self) -> PathBuf {
        self.out.join("runs")
    }

    /// The plan as text: what would run, what is there already, and how long it may take.
    ///
    /// # Errors
    ///
    /// A task whose model or data are not here or not what is expected.
    pub fn plan(&self) -> Result<String> {
        use std::fmt::Write as _;
        let mut text = String::new();
        let _ = writeln!(
            text,
            "suite {}: {} runs on {}",
            self.suite.name,
            self.total(),
            self.device
        );
        let (mut open, mut seconds, mut known) = (0, 0.0, 0);
        for task in &self.tasks {
            let folder = model_folder(&task.model)?;
            let (_, split) = rows(task)?;
            let steps = task.training.epochs * split.train.len().div_ceil(task.training.batch_size);
            let _ = writeln!(
                text,
                "task {}: {} at {}; {} train, {} dev, {} test rows; {steps} steps a run",
                task.name,
                task.model.name(),
                folder.display(),
                split.train.len(),
                split.dev.len(),
                split.test.len(),
            );
            for method in &self.methods {
                let mut done = 0;
                let grid = self.grid(task, method);
                for rate in &grid {
                    let job = self.job(task, method, *rate, self.suite.seeds[0]);
                    if let Some(outcome) = Outcome::read(&self.jobs_dir(), &job.id()) {
                        done += 1;
                        seconds += outcome.wall_s;
                    }
                }
                known += done;
                // Which rate the other seeds take is known when the first one is tuned.
                let later = self.suite.seeds[1..].iter().filter(|seed| {
                    let job = |rate: &f64| self.job(task, method, *rate, **seed).id();
                    !grid
                        .iter()
                        .any(|rate| Outcome::read(&self.jobs_dir(), &job(rate)).is_some())
                });
                open += grid.len() - done + later.count();
                let _ = writeln!(
                    text,
                    "  {}: learning rates {grid:?}, {done} of {} tried; seeds {:?}",
                    method.name,
                    grid.len(),
                    self.suite.seeds,
                );
            }
        }
        let _ = match known {
            0 => writeln!(
                text,
                "nothing has been run here, so no time is known; the suite is meant for {} minutes on 2 cores",
                self.suite.budget_minutes
            ),
            _ => writeln!(
                text,
                "about {:.0} s for the {open} open runs, going by the {known} finished ones",
                seconds / known as f64 * open as f64,
            ),
        };
        Ok(text)
    }

    /// Runs what is missing and returns the records, old and new.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] when `stop` was set: what is finished is kept. [`Error::Job`] with the
    /// last words of a failed run.
    pub fn run(&self, stop: &AtomicBool) -> Result<Vec<RunRecord>> {
        // Two at once would do the work twice and spoil each other's timings.
        std::fs::create_dir_all(&self.out).map_err(io(&self.out))?;
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
            for method in &self.methods {
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
        let best = trials
            .iter()
            .filter(|trial| trial.dev.is_finite())
            .reduce(|best, trial| if trial.dev > best.dev { trial } else { best })
            .unwrap_or(&trials[0]);
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
        let configured = job.configured(&["classifier"])?;
        let info = configured.info();
        let definition = job.definition();
        let record = RunRecord {
            schema: SCHEMA,
            id: job.id(),
            suite: self.suite.name.clone(),
            task: job.task.name.clone(),
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
            rows: Rows {
                train: outcome.rows[0],
                dev: outcome.rows[1],
                test: outcome.rows[2],
            },
            metric: Metric {
                name: job.task.metric.clone(),
                higher_is_better: true,
            },
            majority: outcome.majority,
            curve: outcome.curve.clone(),
            dev: outcome.dev,
            test: outcome.test,
            counts: outcome.counts,
            adapter_bytes: outcome.adapter_bytes,
            step_s: outcome.step_s,
            tokens_per_s: outcome.tokens_per_s,
            memory: outcome.memory,
            latency_ms: outcome.latency_ms,
            rank_of_change: configured.rank_of_change().map(|rank| rank as u64),
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

//! Plans the jobs of a suite, runs what is missing in processes of their own, chooses learning
//! rates on the dev split, and writes records.

mod plan;
mod prepare;
mod run;
mod search;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::definition::{
    Definitions, MethodEntry, Part, Suite, Task, Tune, family_key, overridden,
};
use crate::error::io;
use crate::job::{Inputs, Job, JobPart, Outcome, hash};
use crate::progress::Progress;
use crate::record::{Failure, Grid, Method, Model, RunRecord, SCHEMA, Trial};
use crate::registry::Registry;
use crate::{Error, Result};

/// Folder of the records in the folder of results.
pub const RUNS: &str = "runs";
/// Folder of what failed in the folder of results.
pub const FAILURES: &str = "failures";

/// What a comparison ends with.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// The runs that a report is made of.
    pub records: Vec<RunRecord>,
    /// Those that have no result.
    pub failures: Vec<Failure>,
}

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
    /// All entries: those of the suite may be built from others.
    entries: Vec<MethodEntry>,
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
        let task = |name: &String| {
            let task = overridden(definitions.task(name)?, &suite.overrides)?;
            definitions.check_rates(&task, &format!("suite {}", suite.name))?;
            Ok(task)
        };
        let tasks = suite.tasks.iter().map(task).collect::<Result<_>>()?;
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
            entries: definitions.methods.clone(),
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
            task: task.without_grids(),
            method: method.without_grid(),
            parts: self.parts_of(task, method),
            learning_rate,
            seed,
            device: self.device.clone(),
            inputs: self.inputs.get(&task.name).cloned().unwrap_or_default(),
        }
    }

    /// What a method is built from, each at the middle rate of its grid on the task.
    fn parts_of(&self, task: &Task, method: &MethodEntry) -> Vec<JobPart> {
        let part = |part: &Part| {
            let entry = self.entries.iter().find(|entry| entry.name == part.entry)?;
            let rates = task.grid(entry).learning_rates;
            Some(JobPart {
                name: part.name.clone(),
                method: entry.without_grid(),
                learning_rate: rates[rates.len() / 2],
            })
        };
        method.parts.iter().filter_map(part).collect()
    }

    /// The learning rates that are tried on a task in any case.
    fn rates(&self, task: &Task, method: &MethodEntry) -> Vec<f64> {
        if !method.trains() {
            return vec![0.0];
        }
        let rates = task.grid(method).learning_rates;
        match self.suite.tune {
            Tune::FirstSeed | Tune::Extended => rates,
            Tune::None => vec![rates[rates.len() / 2]],
        }
    }

    /// How many runs there are, trials included: the winning trial is the first seed's run.
    fn total(&self) -> usize {
        let of_task = |task: &Task| {
            let methods = self.methods_of(task);
            let runs = methods
                .map(|method| self.rates(task, method).len() + self.seeds_of(method).len() - 1);
            runs.sum::<usize>()
        };
        self.tasks.iter().map(of_task).sum()
    }

    fn jobs_dir(&self) -> PathBuf {
        self.out.join("jobs")
    }

    fn runs_dir(&self) -> PathBuf {
        self.out.join(RUNS)
    }

    fn failures_dir(&self) -> PathBuf {
        self.out.join(FAILURES)
    }

    /// Runs what is missing and returns the records, old and new. A run that fails does not end the others: it is kept
    /// as a [`Failure`], and tried again by the next call.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] when `stop` was set: what is finished is kept. Folders and files that cannot be written.
    pub fn run(&self, stop: &AtomicBool) -> Result<Results> {
        // Two at once would do the work twice and spoil each other's timings.
        peft_core::files::create_dir(&self.out)?;
        let path = self.out.join(".lock");
        let lock = std::fs::File::create(&path).map_err(io(&path))?;
        if lock.try_lock().is_err() {
            return Err(Error::Busy {
                out: self.out.clone(),
            });
        }
        // Whatever failed before is tried again.
        if self.failures_dir().is_dir() {
            peft_core::files::remove_dir(&self.failures_dir())?;
        }
        let progress = Progress::new(self.total());
        let mut results = Results::default();
        for task in &self.tasks {
            for method in self.methods_of(task) {
                self.compare(task, method, &progress, stop, &mut results)?;
            }
        }
        progress.finish();
        self.remove_older(&results.records)?;
        Ok(results)
    }

    /// Removes the records of runs whose place others have taken: of a learning rate that won a search before more rates
    /// were tried. Their jobs stay.
    fn remove_older(&self, records: &[RunRecord]) -> Result<()> {
        let place = |run: &RunRecord| {
            let (task, model) = (run.task.clone(), run.model.name.clone());
            (
                run.suite.clone(),
                task,
                model,
                run.method.name.clone(),
                run.seed,
            )
        };
        let places: HashMap<_, &String> = records.iter().map(|run| (place(run), &run.id)).collect();
        let dir = self.runs_dir();
        if !dir.is_dir() {
            return Ok(());
        }
        for run in RunRecord::load_dir(&dir)? {
            if places.get(&place(&run)).is_some_and(|id| **id != run.id) {
                let path = RunRecord::path(&dir, &run.id);
                std::fs::remove_file(&path).map_err(io(&path))?;
            }
        }
        Ok(())
    }

    fn record(&self, outcome: &Outcome, grid: Option<Grid>, tuning: &[Trial]) -> Result<RunRecord> {
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
            grid,
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

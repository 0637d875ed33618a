//! Carries out what is missing, a process for each run, and chooses learning rates on the dev split.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use super::search::Search;
use super::{Order, Results};
use crate::definition::{MethodEntry, Task, Tune};
use crate::error::io;
use crate::job::{Job, Outcome};
use crate::progress::Progress;
use crate::record::Failure;
use crate::{Error, Result};

/// How a run ended. A failure is no error of the comparison.
type Ended = std::result::Result<Box<Outcome>, Box<Failure>>;

impl Order {
    /// All runs of one method on one task.
    pub(super) fn compare(
        &self,
        task: &Task,
        method: &MethodEntry,
        progress: &Progress,
        stop: &AtomicBool,
        results: &mut Results,
    ) -> Result<()> {
        let first = self.suite.seeds[0];
        let mut search = Search::new(task.kind.metric());
        let mut rates = VecDeque::from(self.rates(task, method));
        while let Some(learning_rate) = rates.pop_front() {
            let job = self.job(task, method, learning_rate, first);
            match self.ended(&job, progress, stop)? {
                Ok(outcome) => search.finished(*outcome),
                Err(failure) => {
                    search.failed(learning_rate, failure.error.clone());
                    results.failures.push(*failure);
                }
            }
            if rates.is_empty() && self.suite.tune == Tune::Extended && method.trains() {
                rates.extend(search.beyond());
                progress.more(rates.len());
            }
        }
        let tuning = search.trials();
        let Some(best) = search.best() else {
            // No rate to run the other seeds with.
            self.seeds_of(method)[1..]
                .iter()
                .for_each(|_| progress.advance());
            return Ok(());
        };
        if !method.trains() {
            // One run stands for all seeds, so that differences to it can be paired.
            for seed in &self.suite.seeds {
                let mut outcome = best.clone();
                outcome.job.seed = *seed;
                results.records.push(self.record(&outcome, None, &[])?);
            }
            return Ok(());
        }
        let grid = || Some(task.grid(method));
        results.records.push(self.record(best, grid(), tuning)?);
        for seed in &self.suite.seeds[1..] {
            let job = self.job(task, method, best.job.learning_rate, *seed);
            match self.ended(&job, progress, stop)? {
                Ok(outcome) => results.records.push(self.record(&outcome, grid(), tuning)?),
                Err(failure) => results.failures.push(*failure),
            }
        }
        Ok(())
    }

    /// A job's outcome, from its file or by running it; or how it failed, which is written down.
    fn ended(&self, job: &Job, progress: &Progress, stop: &AtomicBool) -> Result<Ended> {
        let id = job.id();
        if let Some(outcome) = Outcome::read(&self.jobs_dir(), &id) {
            progress.known(&outcome);
            return Ok(Ok(Box::new(outcome)));
        }
        let stopped = || Error::Stopped {
            done: progress.done(),
            total: progress.total(),
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
        if let Some(outcome) = Outcome::read(&self.jobs_dir(), &id).filter(|_| status.success()) {
            progress.end(&outcome);
            return Ok(Ok(Box::new(outcome)));
        }
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
        let failure = Failure {
            id,
            suite: self.suite.name.clone(),
            task: job.task.name.clone(),
            model: job.task.model.name(),
            method: job.method.name.clone(),
            learning_rate: job.learning_rate,
            seed: job.seed,
            error: last.unwrap_or_else(|| status.to_string()),
            failed_at: now.to_string(),
        };
        failure.write(&self.failures_dir())?;
        progress.fail(&failure.line());
        Ok(Err(Box::new(failure)))
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

//! What would run.

use std::fmt::Write as _;

use super::Order;
use crate::definition::{MethodEntry, Task, Tune};
use crate::job::{Outcome, model_folder};
use crate::record::Rows;
use crate::{Result, train};

/// What is known of the time.
#[derive(Default)]
struct Time {
    /// Runs that are missing.
    open: usize,
    /// Runs that are here.
    known: usize,
    /// Seconds that these took.
    seconds: f64,
}

impl Order {
    /// The plan as text: what would run, what is there already, and how long it may take.
    ///
    /// # Errors
    ///
    /// A task whose model or data are not here or not what is expected.
    pub fn plan(&self) -> Result<String> {
        let mut text = format!(
            "suite {}: {} runs on {}{}\n",
            self.suite.name,
            self.total(),
            self.device,
            match self.suite.tune {
                Tune::Extended =>
                    ", and more where the best learning rate lies at an end of its grid",
                Tune::FirstSeed | Tune::None => "",
            }
        );
        let mut time = Time::default();
        for task in &self.tasks {
            text.push_str(&task_line(task, train::sizes(task)?)?);
            for method in self.methods_of(task) {
                text.push_str(&self.method_line(task, method, &mut time));
            }
            for left_out in self.left_out.iter().filter(|left| left.task == task.name) {
                // The first line says it; the others list the model's layers.
                let reason = left_out.reason.lines().next().unwrap_or_default();
                let _ = writeln!(text, "  {} is left out: {reason}", left_out.method);
            }
        }
        let Time {
            open,
            known,
            seconds,
        } = time;
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

    fn method_line(&self, task: &Task, method: &MethodEntry, time: &mut Time) -> String {
        let finished = |rate: f64, seed: u64| {
            Outcome::read(&self.jobs_dir(), &self.job(task, method, rate, seed).id())
        };
        let grid = self.rates(task, method);
        let seeds = self.seeds_of(method);
        let done: Vec<Outcome> = grid
            .iter()
            .filter_map(|rate| finished(*rate, seeds[0]))
            .collect();
        time.known += done.len();
        time.seconds += done.iter().map(|outcome| outcome.wall_s).sum::<f64>();
        // Which rate the other seeds take is known when the first one is tuned.
        let later = seeds[1..]
            .iter()
            .filter(|seed| !grid.iter().any(|rate| finished(*rate, **seed).is_some()));
        time.open += grid.len() - done.len() + later.count();
        if !method.trains() {
            return format!("  {}: measured once, nothing is trained\n", method.name);
        }
        let parts = method
            .parts
            .iter()
            .map(|part| format!("; built from {} ({})", part.name, part.entry));
        let parts: String = parts.collect();
        format!(
            "  {}: learning rates {grid:?} ({}), {} of {} tried; seeds {seeds:?}{parts}\n",
            method.name,
            task.grid(method).origin(),
            done.len(),
            grid.len(),
        )
    }
}

fn task_line(task: &Task, sizes: Rows) -> Result<String> {
    let folder = model_folder(&task.model)?;
    let Rows {
        train,
        dev,
        test,
        general,
    } = sizes;
    let steps = task.training.epochs * (train as usize).div_ceil(task.training.batch_size);
    let rows = task.kind.rows();
    let general = if general > 0 {
        format!(", and {general} of general text")
    } else {
        String::new()
    };
    Ok(format!(
        "task {}: {} at {}; {train} train, {dev} dev, {test} test {rows}{general}; {steps} steps a run\n",
        task.name,
        task.model.name(),
        folder.display(),
    ))
}

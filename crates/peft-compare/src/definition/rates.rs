//! Which learning rates a method is tried with on a task.

use super::{Definitions, MethodEntry, Task};
use crate::record::{Grid, GridSource};
use crate::{Error, Result};

impl Task {
    /// The grid of a method: the task's own for it, or else the method's times the task's factor.
    pub fn grid(&self, method: &MethodEntry) -> Grid {
        if let Some(own) = self.learning_rates.get(&method.name) {
            return Grid {
                source: GridSource::Task,
                factor: 1.0,
                learning_rates: own.clone(),
            };
        }
        let factor = self.training.learning_rate_factor;
        let scaled = |rate: &f64| {
            let rate = rate * factor;
            // 3e-4 times 3 is 9e-4 and not 8.999999999999999e-4.
            format!("{rate:.3e}").parse().unwrap_or(rate)
        };
        Grid {
            source: if method.of_family {
                GridSource::Family
            } else {
                GridSource::Method
            },
            factor,
            learning_rates: method.learning_rates.iter().map(scaled).collect(),
        }
    }

    /// The task without what only says which runs there are: a run has one learning rate, and is the same run
    /// whichever grid it is of.
    #[must_use]
    pub fn without_grids(&self) -> Self {
        let mut task = self.clone();
        task.learning_rates.clear();
        task.training.learning_rate_factor = 1.0;
        task
    }
}

impl MethodEntry {
    /// The entry without its grid; see [`Task::without_grids`].
    #[must_use]
    pub fn without_grid(&self) -> Self {
        Self {
            learning_rates: Vec::new(),
            ..self.clone()
        }
    }
}

impl Definitions {
    /// Refuses a task's own grids if they are of no method, are more or fewer trials than the others get, or do not
    /// rise.
    ///
    /// # Errors
    ///
    /// [`Error::Definition`] naming the task and the method.
    pub fn check_rates(&self, task: &Task, file: &str) -> Result<()> {
        let refuse = |reason: String| {
            Err(Error::Definition {
                file: file.into(),
                reason: format!("task `{}`: learning_rates of {reason}", task.name),
            })
        };
        let trains = |entry: &&MethodEntry| entry.trains();
        let trials = self.methods.iter().find(trains);
        let trials = trials.map_or(0, |entry| entry.learning_rates.len());
        for (name, rates) in &task.learning_rates {
            let Some(entry) = self.methods.iter().find(|entry| entry.name == *name) else {
                let known: Vec<&str> = self
                    .methods
                    .iter()
                    .map(|entry| entry.name.as_str())
                    .collect();
                return refuse(format!(
                    "`{name}`, which no entry is called; there are {}",
                    known.join(", ")
                ));
            };
            if !entry.trains() {
                return refuse(format!("`{name}`, which trains nothing: leave them out"));
            }
            if rates.len() != trials {
                return refuse(format!(
                    "`{name}`: {} of them, the other methods have {trials}: every method gets the same number of trials",
                    rates.len()
                ));
            }
            if !rising(rates) {
                return refuse(format!("`{name}`: {rates:?} must be above 0 and rise"));
            }
        }
        Ok(())
    }
}

/// Whether rates are numbers above 0, each larger than the one before.
pub(super) fn rising(rates: &[f64]) -> bool {
    let numbers = rates.iter().all(|rate| rate.is_finite() && *rate > 0.0);
    numbers && rates.windows(2).all(|pair| pair[0] < pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn definitions() -> Definitions {
        Definitions::load(None, &Registry::library()).unwrap()
    }

    #[test]
    fn a_tasks_own_rates_stand_before_the_methods() {
        let definitions = definitions();
        let mut task = definitions.task("movie-reviews").unwrap().clone();
        let entry = |name: &str| {
            let found = definitions.methods.iter().find(|entry| entry.name == name);
            found.unwrap().clone()
        };
        let lora = entry("lora");
        task.learning_rates.clear();
        task.training.learning_rate_factor = 3.0;
        let grid = task.grid(&lora);
        assert_eq!((grid.source, grid.factor), (GridSource::Method, 3.0));
        assert_eq!(grid.learning_rates, [9e-4, 3e-3, 9e-3]);
        task.learning_rates
            .insert("lora".into(), vec![3e-3, 1e-2, 3e-2]);
        let grid = task.grid(&lora);
        assert_eq!((grid.source, grid.factor), (GridSource::Task, 1.0));
        assert_eq!(grid.learning_rates, [3e-3, 1e-2, 3e-2]);
        // Another entry of the same method keeps its own.
        assert_eq!(task.grid(&entry("lora-all")).source, GridSource::Method);
        let family = MethodEntry {
            name: "new".into(),
            of_family: true,
            ..lora
        };
        assert_eq!(task.grid(&family).source, GridSource::Family);
        let bare = task.without_grids();
        assert!(bare.learning_rates.is_empty());
        assert_eq!(bare.grid(&family).learning_rates, [3e-4, 1e-3, 3e-3]);
    }

    #[test]
    fn rates_that_cannot_be_meant_are_refused() {
        let definitions = definitions();
        let task = definitions.task("movie-reviews").unwrap();
        let refused = |name: &str, rates: &[f64]| {
            let mut task = task.clone();
            task.learning_rates.insert(name.into(), rates.to_vec());
            let error = definitions.check_rates(&task, "tasks.toml").unwrap_err();
            error.to_string()
        };
        let right = [1e-3, 3e-3, 1e-2];
        let error = refused("lorra", &right);
        assert!(
            error.contains("`lorra`") && error.contains("lora-all"),
            "{error}"
        );
        assert!(refused("base", &right).contains("trains nothing"));
        assert!(refused("lora", &right[1..]).contains("same number of trials"));
        for wrong in [
            [1e-2, 3e-3, 1e-3],
            [0.0, 1e-3, 3e-3],
            [1e-3, 1e-3, 3e-3],
            [1e-3, 3e-3, f64::INFINITY],
        ] {
            assert!(refused("lora", &wrong).contains("rise"), "{wrong:?}");
        }
    }
}

//! A run that ended with an error, kept beside the results so that a report names it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use peft_core::files;
use serde::{Deserialize, Serialize};

use super::RecordError;

/// A run that failed. The same command tries it again.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Failure {
    /// The id of the job; also the name of the file.
    pub id: String,
    /// The suite it belongs to.
    pub suite: String,
    /// The task.
    pub task: String,
    /// Name of the model.
    pub model: String,
    /// Name of the method.
    pub method: String,
    /// The learning rate.
    pub learning_rate: f64,
    /// The seed.
    pub seed: u64,
    /// The last words of the run.
    pub error: String,
    /// When it failed, RFC 3339.
    pub failed_at: String,
}

impl Failure {
    /// One line for people: the run, and the first line of its error.
    pub fn line(&self) -> String {
        format!(
            "{} on {}, learning rate {}, seed {}: {}",
            self.method,
            self.task,
            self.learning_rate,
            self.seed,
            self.error.lines().next().unwrap_or("no words")
        )
    }

    /// Writes the failure to `dir`, which is created when missing. It appears whole or not at all.
    ///
    /// # Errors
    ///
    /// [`RecordError::Write`]; [`RecordError::Serialize`].
    pub fn write(&self, dir: &Path) -> Result<(), RecordError> {
        let json = serde_json::to_vec_pretty(self).map_err(|source| RecordError::Serialize {
            id: self.id.clone(),
            source,
        })?;
        files::write(dir.join(format!("{}.json", self.id)), json).map_err(RecordError::Write)
    }

    /// Those in `dir`, ordered by task, method, seed and learning rate; none if there is no such folder.
    ///
    /// # Errors
    ///
    /// [`RecordError::Read`]; [`RecordError::Foreign`].
    pub fn load_dir(dir: &Path) -> Result<Vec<Self>, RecordError> {
        let read = |path: &Path| {
            let at = |source| RecordError::Read {
                path: path.into(),
                source,
            };
            let bytes = fs::read(path).map_err(at)?;
            serde_json::from_slice(&bytes).map_err(|source| RecordError::Foreign {
                path: path.into(),
                source,
            })
        };
        let mut failures: Vec<Self> = json_files(dir)
            .map_err(|source| RecordError::Read {
                path: dir.into(),
                source,
            })?
            .iter()
            .map(|path| read(path))
            .collect::<Result<_, _>>()?;
        failures.sort_by(|a, b| {
            let key = |failure: &Self| (failure.task.clone(), failure.method.clone(), failure.seed);
            key(a)
                .cmp(&key(b))
                .then(a.learning_rate.total_cmp(&b.learning_rate))
        });
        Ok(failures)
    }
}

fn json_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == "json") {
            paths.push(path);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn what_failed_is_read_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("failures");
        assert!(Failure::load_dir(&folder).unwrap().is_empty());
        let later = sample::failure("lora", 3e-3);
        let first = sample::failure("lora", 1e-3);
        later.write(&folder).unwrap();
        first.write(&folder).unwrap();
        assert_eq!(Failure::load_dir(&folder).unwrap(), [first.clone(), later]);
        assert!(
            first
                .line()
                .contains("lora on reviews, learning rate 0.001")
        );
        fs::write(folder.join("plan.json"), "{}").unwrap();
        let error = Failure::load_dir(&folder).unwrap_err().to_string();
        assert!(error.contains("plan.json"), "{error}");
    }
}

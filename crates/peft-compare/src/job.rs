//! One training run as data, and what came out of it.

mod inputs;

use std::path::{Path, PathBuf};

use peft_core::method::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use self::inputs::{ASSETS, EMBEDDED_MODEL, Inputs, model_folder, rows, texts};
use crate::definition::{Kind, MethodEntry, Task};
use crate::record::{Counts, Environment, Epoch, Forgetting, Git, Latency, Memory, Rows, StepTime};
use crate::registry::Registry;
use crate::{Error, Result};

/// An adapter that is trained before the method of a run is attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobPart {
    /// Its name on the model.
    pub name: String,
    /// Its configuration.
    pub method: MethodEntry,
    /// Its learning rate.
    pub learning_rate: f64,
}

/// Everything that decides a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The task, overrides applied.
    pub task: Task,
    /// The configured method.
    pub method: MethodEntry,
    /// What it is built from, in the order of training.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<JobPart>,
    /// The learning rate of this run.
    pub learning_rate: f64,
    /// Seed of head, adapter, order of rows and dropout.
    pub seed: u64,
    /// Device, as in `flex`.
    pub device: String,
    /// What the run reads, by content.
    pub inputs: Inputs,
}

/// What came out of a job. Scores are NaN where training diverged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The job.
    pub job: Job,
    /// When it started, RFC 3339.
    pub started_at: String,
    /// Seconds it took.
    pub wall_s: f64,
    /// Parameters of the model without its head.
    pub model_parameters: u64,
    /// Rows of each split.
    pub rows: Rows,
    /// Score on test that needs no training: of the majority class, or of the untrained language model.
    #[serde(deserialize_with = "crate::record::number_or_nan")]
    pub baseline: f64,
    /// Loss and dev score by epoch.
    pub curve: Vec<Epoch>,
    /// Score on dev.
    #[serde(deserialize_with = "crate::record::number_or_nan")]
    pub dev: f64,
    /// Score on test.
    #[serde(deserialize_with = "crate::record::number_or_nan")]
    pub test: f64,
    /// Loss on general text, of language models.
    pub forgetting: Option<Forgetting>,
    /// Parameter counts.
    pub counts: Counts,
    /// Bytes of the saved adapter.
    pub adapter_bytes: u64,
    /// Seconds a step.
    pub step_s: StepTime,
    /// Tokens a second, padding included, as the peer counts them.
    pub tokens_per_s: f64,
    /// Memory of training.
    pub memory: Memory,
    /// Latency at batch 1.
    pub latency_ms: Latency,
    /// The source revision that ran.
    pub git: Git,
    /// What it ran on.
    pub environment: Environment,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl Job {
    /// Hash of all that decides the run, in hex: the name of its file.
    pub fn id(&self) -> String {
        hash(&serde_json::to_value(self).expect("plain data"))
    }

    /// The run's definition without its seed.
    pub fn definition(&self) -> Value {
        let mut json = serde_json::to_value(self).expect("plain data");
        if let Some(fields) = json.as_object_mut() {
            fields.remove("seed");
        }
        json
    }

    /// The training of one part.
    #[must_use]
    pub fn of_part(&self, part: &JobPart) -> Self {
        Self {
            method: part.method.clone(),
            learning_rate: part.learning_rate,
            parts: Vec::new(),
            ..self.clone()
        }
    }

    /// One line for people.
    pub fn label(&self) -> String {
        format!(
            "{} · {} · lr {} · seed {}",
            self.task.name, self.method.name, self.learning_rate, self.seed
        )
    }

    /// The configured method. What the kind of task calls heads is trained and saved whole besides it.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] if the method is not registered; what its configuration refuses.
    pub fn configured(&self, registry: &Registry) -> Result<Box<dyn Method>> {
        let info = registry.method(&self.method.method)?;
        let mut config = self.method.config.clone();
        if self.task.kind == Kind::LanguageModel {
            config.extend(self.method.llama.clone());
        }
        config.insert("peft_type".into(), info.peft_type.into());
        let mut method = (info.parse)(&Value::Object(config))?;
        let unknown: Vec<_> = method.common().unknown.keys().map(String::as_str).collect();
        if !unknown.is_empty() {
            return Err(Error::Definition {
                file: "methods.toml".into(),
                reason: format!(
                    "method `{}`: {} has no field {}",
                    self.method.name,
                    info.title,
                    unknown.join(", "),
                ),
            });
        }
        let heads = self.task.kind.heads();
        if !heads.is_empty() {
            let heads = heads.iter().map(ToString::to_string).collect();
            method.common_mut().modules_to_save = Some(heads);
        }
        Ok(method)
    }

    /// The folder of the model.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] with the command that brings it.
    pub fn model_folder(&self) -> Result<PathBuf> {
        model_folder(&self.task.model)
    }
}

/// SHA-256 of a JSON value, the first 16 bytes in hex.
pub fn hash(value: &Value) -> String {
    hex(&Sha256::digest(value.to_string().as_bytes()))
}

/// The first 16 bytes in hex.
fn hex(digest: &[u8]) -> String {
    let half = digest.first_chunk().expect("SHA-256 has 32 bytes");
    format!("{:032x}", u128::from_be_bytes(*half))
}

impl Outcome {
    /// The file of a job's outcome in `dir`.
    pub fn path(dir: &Path, id: &str) -> PathBuf {
        dir.join(format!("{id}.json"))
    }

    /// Reads an outcome; `None` where there is none yet, or only what an older version wrote.
    pub fn read(dir: &Path, id: &str) -> Option<Self> {
        let text = std::fs::read_to_string(Self::path(dir, id)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes the outcome, whole or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = Self::path(dir, &self.job.id());
        let json = serde_json::to_string_pretty(self).expect("plain data");
        Ok(peft_core::files::write(path, json)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::Definitions;

    fn job(task: &str, method: &str) -> Job {
        let definitions = Definitions::load(None, &Registry::library()).unwrap();
        let entries = &definitions.methods;
        let entry = entries.iter().find(|entry| entry.name == method).unwrap();
        Job {
            task: definitions.task(task).unwrap().clone(),
            method: entry.clone(),
            parts: Vec::new(),
            learning_rate: 1e-3,
            seed: 1,
            device: "flex".into(),
            inputs: Inputs::default(),
        }
    }

    #[test]
    fn a_kind_of_task_decides_targets_and_heads() {
        let encoder = job("uci-sentiment", "lora")
            .configured(&Registry::library())
            .unwrap();
        assert_eq!(
            encoder.common().modules_to_save,
            Some(vec!["classifier".into()])
        );
        assert_eq!(encoder.to_json()["target_modules"][0], "query");
        let llama = job("austen-lm", "lora")
            .configured(&Registry::library())
            .unwrap();
        assert_eq!(llama.common().modules_to_save, None);
        assert_eq!(llama.common().task_type, None);
        assert_eq!(llama.to_json()["target_modules"][0], "q_proj");
        assert_eq!(llama.to_json()["r"], encoder.to_json()["r"]);
        let base = job("austen-lm", "base")
            .configured(&Registry::library())
            .unwrap();
        assert_eq!(base.info().name, crate::reference::BASE);
    }

    #[test]
    fn the_default_task_has_the_rows_that_it_expects_in_parts_of_their_own() {
        let definitions = Definitions::load(None, &Registry::library()).unwrap();
        let mut task = definitions.task("misspelled").unwrap().clone();
        assert_eq!(
            definitions.suite("default").unwrap().tasks,
            [task.name.clone()]
        );
        let (data, split) = rows(&task).unwrap();
        let sizes = [&split.train, &split.dev, &split.test].map(Vec::len);
        assert_eq!(sizes.iter().sum::<usize>(), data.rows.len());
        task.split.train = Some(10);
        let (_, fewer) = rows(&task).unwrap();
        assert_eq!(fewer.train, split.train[..10]);
        assert_eq!((fewer.dev, fewer.test), (split.dev, split.test));
        task.split.rule = crate::definition::Rule::IndexMod10;
        assert!(
            rows(&task)
                .unwrap_err()
                .to_string()
                .contains("movie-reviews")
        );
    }

    #[test]
    fn a_score_that_is_no_number_can_be_read_back() {
        let record = crate::report::sample::record("lora", 1);
        let mut json = serde_json::to_value(&record).unwrap();
        json["baseline"] = Value::Null;
        let read: crate::record::RunRecord = serde_json::from_value(json).unwrap();
        assert!(read.baseline.is_nan());
    }

    #[test]
    fn the_novels_are_what_the_task_expects() {
        let mut task = job("austen-lm", "lora").task;
        assert_eq!(texts(&task).unwrap().held_out[0].title, "Persuasion");
        let expect = task.expect.as_mut().unwrap();
        expect.rows += 1;
        let error = texts(&task).unwrap_err().to_string();
        assert!(error.contains("documents: 83, expected 84"), "{error}");
        assert!(rows(&task).is_err(), "running text has no classes");
    }
}

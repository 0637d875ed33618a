//! One training run as data, and what came out of it.

use std::path::{Path, PathBuf};

use peft_core::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::data::{Columns, Dataset, Split};
use crate::definition::{DataSource, MethodEntry, ModelSource, Reader, Rule, Task};
use crate::error::io;
use crate::record::{Counts, Environment, Epoch, Git, Latency, Memory, StepTime};
use crate::{Error, Result};

/// Everything that decides a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The task, overrides applied.
    pub task: Task,
    /// The configured method.
    pub method: MethodEntry,
    /// The learning rate of this run.
    pub learning_rate: f64,
    /// Seed of head, adapter, order of rows and dropout.
    pub seed: u64,
    /// Device, as in `flex`.
    pub device: String,
    /// What the run reads, by content.
    pub inputs: Inputs,
}

/// What a run reads, by content, and what carries it out: results of other rows, other weights or
/// another release are never taken for this run's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// SHA-256 of the rows.
    pub data: String,
    /// SHA-256 of the model's files.
    pub model: String,
    /// Release of this crate.
    pub peft: String,
}

impl Inputs {
    /// Those of a task.
    ///
    /// # Errors
    ///
    /// Missing or unexpected data, an unreadable model folder.
    pub fn of(task: &Task) -> Result<Self> {
        let data = rows(task)?.0.digest();
        let folder = model_folder(&task.model)?;
        let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
            .map_err(io(&folder))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                let extension = path.extension().unwrap_or_default();
                extension == "json" || extension == "safetensors"
            })
            .collect();
        files.sort();
        let mut model = Sha256::new();
        for path in files {
            model.update(std::fs::read(&path).map_err(io(&path))?);
        }
        Ok(Self {
            data,
            model: hex(&model.finalize()),
            peft: env!("CARGO_PKG_VERSION").to_string(),
        })
    }
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
    /// Rows of train, dev and test.
    pub rows: [u64; 3],
    /// Score of the majority class on test.
    pub majority: f64,
    /// Loss and dev score by epoch.
    pub curve: Vec<Epoch>,
    /// Score on dev.
    #[serde(deserialize_with = "crate::record::number_or_nan")]
    pub dev: f64,
    /// Score on test.
    #[serde(deserialize_with = "crate::record::number_or_nan")]
    pub test: f64,
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

    /// One line for people.
    pub fn label(&self) -> String {
        format!(
            "{} · {} · lr {} · seed {}",
            self.task.name, self.method.name, self.learning_rate, self.seed
        )
    }

    /// The configured method; `heads` are trained and saved whole besides it.
    ///
    /// # Errors
    ///
    /// What the method's configuration refuses.
    pub fn configured(&self, heads: &[&str]) -> Result<Box<dyn Method>> {
        let info = peft::methods()
            .into_iter()
            .find(|info| info.name == self.method.method)
            .expect("checked when the definitions were read");
        let mut config = self.method.config.clone();
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
        let heads = heads.iter().map(ToString::to_string).collect();
        method.common_mut().modules_to_save = Some(heads);
        Ok(method)
    }

    /// The rows and their split, checked against what the task expects.
    ///
    /// # Errors
    ///
    /// Unreadable or unexpected data.
    pub fn rows(&self) -> Result<(Dataset, Split)> {
        rows(&self.task)
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

/// Environment variable with the folder of the embedded model; `cargo xtask compare` sets it.
pub const EMBEDDED_MODEL: &str = "PEFT_EMBEDDED_MODEL";
/// Environment variable with the folder of fetched assets; `cargo xtask compare` sets it.
pub const ASSETS: &str = "PEFT_ASSETS";

/// The folder of a model.
///
/// # Errors
///
/// [`Error::Missing`] with the command that brings it.
pub fn model_folder(source: &ModelSource) -> Result<PathBuf> {
    match source {
        ModelSource::Folder { path } => Ok(path.clone()),
        ModelSource::Embedded { name } => std::env::var_os(EMBEDDED_MODEL)
            .map(PathBuf::from)
            .ok_or_else(|| {
                Error::Missing(format!(
                    "the embedded model {name} was not found: start the comparison with \
                     `cargo xtask compare`, which brings it, or give --model and --data"
                ))
            }),
        ModelSource::Asset { name } => asset(name),
    }
}

fn asset(name: &str) -> Result<PathBuf> {
    let missing = || Error::Missing(format!("{name} is not here: `cargo xtask fetch {name}`"));
    let folder = PathBuf::from(std::env::var_os(ASSETS).ok_or_else(missing)?).join(name);
    if folder.is_dir() {
        Ok(folder)
    } else {
        Err(missing())
    }
}

/// The rows of a task and their split.
///
/// # Errors
///
/// Unreadable data, or other data than the task expects.
pub fn rows(task: &Task) -> Result<(Dataset, Split)> {
    let (data, given) = match &task.data {
        DataSource::Vendored { name, .. } if name == "uci-sentiment" => {
            (Dataset::uci_sentiment(), None)
        }
        DataSource::Vendored { name, .. } => {
            return Err(Error::Missing(format!("no data set `{name}` is vendored")));
        }
        DataSource::Asset {
            name,
            file,
            reader: Reader::MovieReviews,
        } => {
            let (data, split) = Dataset::movie_reviews(&asset(name)?.join(file))?;
            (data, Some(split))
        }
        DataSource::Asset {
            name,
            file,
            reader: Reader::Table,
        } => (
            Dataset::load(&asset(name)?.join(file), &Columns::default())?,
            None,
        ),
        DataSource::File {
            path,
            text_column,
            label_column,
        } => {
            let columns = Columns {
                text_column: text_column.clone(),
                label_column: label_column.clone(),
            };
            (Dataset::load(path, &columns)?, None)
        }
    };
    check(task, &data)?;
    let rule = &task.split;
    let split = match (rule.rule, given) {
        (Rule::IndexMod10, Some(split)) => shortened(split, task),
        (Rule::IndexMod10, None) => {
            let reason = "the rule index-mod-10 is for the reader movie-reviews".into();
            return Err(Error::Expectation {
                task: task.name.clone(),
                reason,
            });
        }
        (Rule::Stratified, _) => {
            let (train, dev, test) = data.default_sizes();
            data.split(
                rule.seed,
                rule.train.unwrap_or(train),
                rule.dev.unwrap_or(dev),
                rule.test.unwrap_or(test),
            )?
        }
    };
    Ok((data, split))
}

/// The first rows of each part, as many as the task wants.
fn shortened(mut split: Split, task: &Task) -> Split {
    let rule = &task.split;
    for (part, most) in [
        (&mut split.train, rule.train),
        (&mut split.dev, rule.dev),
        (&mut split.test, rule.test),
    ] {
        part.truncate(most.unwrap_or(usize::MAX));
    }
    split
}

fn check(task: &Task, data: &Dataset) -> Result<()> {
    let Some(expect) = &task.expect else {
        return Ok(());
    };
    let refuse = |what: &str, found: String, expected: String| {
        Err(Error::Expectation {
            task: task.name.clone(),
            reason: format!("{what} {found}, expected {expected}: these are other data than meant"),
        })
    };
    if data.rows.len() != expect.rows {
        return refuse(
            "rows:",
            data.rows.len().to_string(),
            expect.rows.to_string(),
        );
    }
    if data.labels != expect.labels {
        return refuse(
            "classes:",
            format!("{:?}", data.labels),
            format!("{:?}", expect.labels),
        );
    }
    let majority = data.majority().1;
    if (majority - expect.majority).abs() > 5e-5 {
        return refuse(
            "majority share:",
            majority.to_string(),
            expect.majority.to_string(),
        );
    }
    let digest = data.digest();
    if digest != expect.sha256 {
        return refuse("SHA-256 of the rows:", digest, expect.sha256.clone());
    }
    Ok(())
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
        crate::record::write_atomically(&path, json.as_bytes()).map_err(io(&path))
    }
}

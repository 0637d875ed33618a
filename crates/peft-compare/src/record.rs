//! What one run leaves behind: a [`RunRecord`], kept as one JSON file per run.
//!
//! A record holds everything the report needs, so that results can be moved, merged and reported on another
//! machine, long after the run.

mod failure;
mod grid;
mod store;

pub use self::failure::Failure;
pub use self::grid::{Grid, GridSource, Place};
pub use self::store::RecordError;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::kind::Kind;

pub use crate::kind::Metric;

/// The version of the record format that this crate reads and writes.
pub const SCHEMA: u32 = 1;

/// One finished run: a method with its configuration, on a task, on a model, with one seed.
///
/// Scores and losses of a run that diverged are NaN here and `null` in the file.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// The version of the format, [`SCHEMA`].
    pub schema: u32,
    /// Hexadecimal hash of the definition including the seed; also the name of the file.
    pub id: String,
    /// The suite this run belongs to.
    pub suite: String,
    /// The task.
    pub task: String,
    /// What the task is about. Records from before there were language models are of classification.
    #[serde(default)]
    pub kind: Kind,
    /// What the task shows and what it cannot, in prose, as in its definition.
    pub task_analysis: String,
    /// The model that was adapted.
    pub model: Model,
    /// The method that adapted it.
    pub method: Method,
    /// The seed of initialisation, data order and dropout.
    pub seed: u64,
    /// The learning rate of this run: the one among `tuning` that won on the dev split.
    pub learning_rate: f64,
    /// The learning rates that were tried, rising. Every method gets the same number of trials, unless the suite extends
    /// grids.
    pub tuning: Vec<Trial>,
    /// The grid that they are of. `None` of what does not train, and in records from before it was kept.
    #[serde(default)]
    pub grid: Option<Grid>,
    /// The whole definition of the run without its seed.
    pub definition: Value,
    /// Hexadecimal hash of `definition`; equal for all seeds of a method.
    pub definition_hash: String,
    /// The source revision that ran.
    pub git: Git,
    /// What the run ran on.
    pub environment: Environment,
    /// When the run started, RFC 3339.
    pub started_at: String,
    /// Duration of the whole run in seconds, evaluation included.
    pub wall_s: f64,
    /// Rows of each split.
    pub rows: Rows,
    /// What `dev`, `test`, `baseline` and the curve measure.
    pub metric: Metric,
    /// Score on the test split that needs no training: of always answering the majority class, or of the untrained
    /// language model.
    #[serde(alias = "majority", deserialize_with = "number_or_nan")]
    pub baseline: f64,
    /// Loss and dev score after every epoch; of language models also before the first, as epoch 0.
    pub curve: Vec<Epoch>,
    /// Score on the dev split at the end.
    #[serde(deserialize_with = "number_or_nan")]
    pub dev: f64,
    /// Score on the test split at the end.
    #[serde(deserialize_with = "number_or_nan")]
    pub test: f64,
    /// Loss on general text before and after, of language models.
    #[serde(default)]
    pub forgetting: Option<Forgetting>,
    /// Parameter counts.
    pub counts: Counts,
    /// Size of the saved adapter on disk, in bytes.
    pub adapter_bytes: u64,
    /// Seconds per training step.
    pub step_s: StepTime,
    /// Training throughput in tokens per second; 0 where not measured.
    pub tokens_per_s: f64,
    /// Memory of training.
    pub memory: Memory,
    /// Inference latency.
    pub latency_ms: Latency,
    /// Largest rank of the change of a weight, where it is known.
    pub rank_of_change: Option<u64>,
    /// Anything a reader of the result should know.
    pub notes: Vec<String>,
}

/// The model of a run.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Model {
    /// Short name.
    pub name: String,
    /// Number of parameters before a method is attached.
    pub parameters: u64,
    /// Where the weights come from.
    pub source: String,
}

/// The method of a run.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Method {
    /// Short unique name, such as `lora`.
    pub name: String,
    /// Name for people, such as `LoRA (query, value)`.
    pub title: String,
    /// Family in the taxonomy, such as `reparameterization`.
    pub family: String,
    /// The paper or the place that describes it.
    pub reference: String,
    /// The configuration as it was used.
    pub config: Value,
}

/// One learning rate that was tried.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Trial {
    /// The learning rate.
    pub learning_rate: f64,
    /// The dev score it reached; NaN if it diverged or failed.
    #[serde(deserialize_with = "number_or_nan")]
    pub dev: f64,
    /// Why it has no score, if the run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The source revision of a run.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Git {
    /// Commit hash.
    pub revision: String,
    /// Whether the tree had changes that are not in that commit.
    pub dirty: bool,
}

/// What a run ran on.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Environment {
    /// Burn device.
    pub device: String,
    /// Threads of the backend on a CPU; `RAYON_NUM_THREADS` changes it.
    pub threads: usize,
    /// Operating system.
    pub os: String,
    /// Processor.
    pub cpu: String,
    /// What the processor has of all that CPU kernels are chosen by, such as `avx2 fma`, and the sizes of its caches.
    /// Empty in records from before it was kept.
    #[serde(default)]
    pub kernels: String,
    /// Version of Burn.
    pub burn: String,
    /// Version of this library.
    pub peft: String,
    /// Version of the compiler.
    pub rustc: String,
}

/// Rows of each split; of running text, blocks of equally many tokens.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Training rows.
    pub train: u64,
    /// Rows on which the learning rate is chosen.
    pub dev: u64,
    /// Rows of the reported score.
    pub test: u64,
    /// Blocks of general text; 0 in classification.
    #[serde(default)]
    pub general: u64,
}

/// Loss on general text that is like nothing in training, in nats a token.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
pub struct Forgetting {
    /// Of the model as it came.
    #[serde(deserialize_with = "number_or_nan")]
    pub before: f64,
    /// Of the trained model.
    #[serde(deserialize_with = "number_or_nan")]
    pub after: f64,
}

impl Forgetting {
    /// What the loss rose by: above 0 something was forgotten.
    pub fn change(self) -> f64 {
        self.after - self.before
    }
}

/// One point of the training curve.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Epoch {
    /// Number of the epoch, from 1 (0 is before training).
    pub epoch: u64,
    /// Mean training loss over the epoch; NaN for epoch 0.
    #[serde(deserialize_with = "number_or_nan")]
    pub train_loss: f64,
    /// Dev score after it.
    #[serde(deserialize_with = "number_or_nan")]
    pub dev: f64,
}

/// Parameter counts. Every method trains the task head, so what it adds is kept apart: `trainable`, `changed` and
/// `stored` are without it.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Parameters that get a gradient, the head's left out.
    pub trainable: u64,
    /// Parameters of the base whose effective value differs afterwards, the head's left out.
    pub changed: u64,
    /// Numbers that must be stored to restore the adapted model, the head's left out.
    pub stored: u64,
    /// All parameters of the model with the method attached, the head's included.
    pub total: u64,
    /// Parameters of the task head; the trained model has `trainable + head` parameters that get a gradient.
    pub head: u64,
}

/// Seconds per training step.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
pub struct StepTime {
    /// Median; 0 where not measured.
    pub median: f64,
    /// 90th percentile; 0 where not measured.
    pub p90: f64,
}

/// Memory of training in bytes.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Peak during training; 0 where not measured.
    pub peak_bytes: u64,
    /// In use before training, with the model loaded.
    pub baseline_bytes: u64,
}

impl RunRecord {
    /// Where in its grid the learning rate lies; `None` where fewer than three rates were tried.
    pub fn place(&self) -> Option<Place> {
        Place::of(self.learning_rate, &self.tuning, self.dev_noise())
    }

    /// The standard error of the dev score that the choice of dev rows makes; known of accuracy alone.
    fn dev_noise(&self) -> Option<f64> {
        let known = self.kind == Kind::Classification && self.rows.dev > 0;
        known.then(|| (self.dev * (1.0 - self.dev) / self.rows.dev as f64).sqrt())
    }
}

impl Memory {
    /// What training needed on top of the loaded model, or `None` where the peak was not measured.
    pub fn needed(self) -> Option<u64> {
        (self.peak_bytes > 0).then(|| self.peak_bytes.saturating_sub(self.baseline_bytes))
    }
}

/// Inference latency in milliseconds at batch 1.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    /// The model without the method; 0 where not measured.
    pub base: f64,
    /// With the method attached; 0 where not measured.
    pub unmerged: f64,
    /// With the change merged into the weights, for methods that can.
    pub merged: Option<f64>,
}

/// JSON has no NaN: `serde_json` writes it as `null`, which this reads back.
pub(crate) fn number_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

//! Tasks, methods and suites as data. The files explain their fields.

mod load;
mod parts;
mod rates;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::reference::BASE;
use crate::registry::Registry;

pub use crate::kind::Kind;

pub use self::load::{family_key, overridden};

/// What the data must be, whatever was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Rows of the data set; of running text, its documents.
    pub rows: usize,
    /// The classes, in the order of their ids. Running text has none.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Share of the most frequent class, to 4 digits. Running text has none.
    #[serde(default)]
    pub majority: Option<f64>,
    /// SHA-256 of the rows or the documents.
    pub sha256: String,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "lowercase", deny_unknown_fields)]
pub enum ModelSource {
    /// The packed model that comes with the project.
    Embedded {
        /// Its name.
        name: String,
    },
    /// A folder of the asset cache.
    Asset {
        /// Its name.
        name: String,
    },
    /// A folder of the user's.
    Folder {
        /// The folder.
        path: PathBuf,
    },
}

impl ModelSource {
    /// Where it comes from, for reports.
    pub fn source(&self) -> String {
        match self {
            Self::Embedded { .. } => "crate pocket-encoder 0.1.2, 4-bit matrices".into(),
            Self::Asset { name } => format!("asset {name}"),
            Self::Folder { path } => path.display().to_string(),
        }
    }

    /// The model's name for tables.
    pub fn name(&self) -> String {
        match self {
            Self::Embedded { name } | Self::Asset { name } => name.clone(),
            Self::Folder { path } => path.file_name().map_or_else(
                || path.display().to_string(),
                |name| name.to_string_lossy().into(),
            ),
        }
    }
}

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "lowercase", deny_unknown_fields)]
pub enum DataSource {
    /// In the repository.
    Vendored {
        /// Name of the data set.
        name: String,
        /// How it is read.
        reader: Reader,
    },
    /// A file of the asset cache.
    Asset {
        /// Name of the asset.
        name: String,
        /// The file in it.
        file: String,
        /// How it is read.
        reader: Reader,
    },
    /// A file of the user's.
    File {
        /// The file: rows with classes, or running text.
        path: PathBuf,
        /// The text column, if its name is unusual.
        text_column: Option<String>,
        /// The label column, if its name is unusual.
        label_column: Option<String>,
    },
}

/// How a file becomes rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reader {
    /// A table with a text and a label column.
    Table,
    /// The movie review snippets with mean ratings.
    MovieReviews,
    /// Running text, for language models.
    Text,
}

/// How rows become train, dev and test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitRule {
    /// The rule.
    pub rule: Rule,
    /// Seed of the stratified rule.
    #[serde(default)]
    pub seed: u64,
    /// Rows to train on.
    pub train: Option<usize>,
    /// Rows to choose settings on.
    pub dev: Option<usize>,
    /// Rows to report.
    pub test: Option<usize>,
    /// Blocks of general text to measure forgetting on; language models only.
    #[serde(default)]
    pub general: Option<usize>,
}

/// A splitting rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// Classes in proportion, equal texts together.
    #[serde(rename = "stratified")]
    Stratified,
    /// The peer's rule for movie reviews.
    #[serde(rename = "index-mod-10")]
    IndexMod10,
    /// Running text: the held-out text is test, the end of each training text is dev.
    #[serde(rename = "by-text")]
    ByText,
}

/// Training settings, the same for every method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Passes over the training rows.
    pub epochs: usize,
    /// Rows per step.
    pub batch_size: usize,
    /// Factor of the learning rates of methods for which the task has no own: short runs want larger ones. Default: 1.
    #[serde(default = "one")]
    pub learning_rate_factor: f64,
    /// Whether rows of like length share a batch, which saves padding. Default: no.
    #[serde(default)]
    pub group_by_length: bool,
    /// Whether a language model's activations are computed again in the backward pass: less memory, about a third
    /// more time. Default: no.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Share of the steps in which the learning rate rises; it falls linearly after.
    pub warmup: f64,
    /// `AdamW`'s decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of all gradients together.
    pub clip_norm: f64,
}

fn one() -> f64 {
    1.0
}

/// A model, data, a split, a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name.
    pub name: String,
    /// Title for reports.
    pub title: String,
    /// What it is about. Default: classification.
    #[serde(default)]
    pub kind: Kind,
    /// What it shows and what it cannot.
    pub analysis: String,
    /// `accuracy`, or `loss` for language models.
    pub metric: String,
    /// Tokens kept of a text, special tokens included; of running text, the tokens of a block.
    pub max_len: usize,
    /// What the data must be.
    pub expect: Option<Expect>,
    /// The model.
    pub model: ModelSource,
    /// The rows.
    pub data: DataSource,
    /// The split.
    pub split: SplitRule,
    /// The training.
    pub training: Training,
    /// Grids of single methods, by the names of their entries, in place of the entry's own: found on this task's dev
    /// split. `learning_rate_factor` does not change them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub learning_rates: BTreeMap<String, Vec<f64>>,
}

/// An adapter that an entry is built from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The adapter's name on the model.
    pub name: String,
    /// The entry that configures it.
    pub entry: String,
}

/// A configuration of a method, and its learning rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodEntry {
    /// Name in results and on the command line.
    pub name: String,
    /// The registered method that it configures.
    pub method: String,
    /// Whether it is in every suite.
    #[serde(default)]
    pub reference: bool,
    /// Kinds of tasks that it is for. Default: all.
    #[serde(default = "Kind::all")]
    pub kinds: Vec<Kind>,
    /// Why it is not for the other kinds, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// Fields of the method's configuration.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// Adapters that have to be on the model before it. Each is trained on a share of the training rows, at the middle
    /// rate of its own entry's grid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// Fields that are otherwise on Llama-like models, whose layers have other names and widths.
    #[serde(default)]
    pub llama: Map<String, Value>,
    /// The grid; empty for what does not train.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learning_rates: Vec<f64>,
    /// Whether the grid is the family's: nobody wrote an entry for the method.
    #[serde(skip)]
    pub of_family: bool,
}

impl MethodEntry {
    /// Whether it trains at all; the untrained model does not, so one run of it stands for all seeds.
    pub fn trains(&self) -> bool {
        self.method != BASE
    }
}

/// Some methods, or all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MethodChoice {
    /// The word `all`.
    All(String),
    /// Names.
    Named(Vec<String>),
}

/// The most learning rates that [`Tune::Extended`] tries of one method.
pub const MOST_TRIALS: usize = 7;

/// How learning rates are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tune {
    /// The whole grid with the first seed; the best on dev wins.
    FirstSeed,
    /// The same, and as long as the best rate lies at an end of what was tried, one more beyond that end, up to
    /// [`MOST_TRIALS`].
    Extended,
    /// The middle of the grid.
    None,
}

/// Which methods on which tasks with which seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Name.
    pub name: String,
    /// Names of tasks.
    pub tasks: Vec<String>,
    /// Methods; references are always in.
    pub methods: MethodChoice,
    /// Seeds, one run each.
    pub seeds: Vec<u64>,
    /// How learning rates are chosen.
    pub tune: Tune,
    /// Minutes that it is meant to take on 2 cores; a dry run says so.
    pub budget_minutes: f64,
    /// What it shows and what it cannot.
    pub analysis: String,
    /// Fields of its tasks that it replaces.
    #[serde(default, rename = "override")]
    pub overrides: Map<String, Value>,
}

/// All definitions.
#[derive(Clone, Debug)]
pub struct Definitions {
    /// The methods that can be configured.
    pub registry: Registry,
    /// Tasks.
    pub tasks: Vec<Task>,
    /// Methods: those of the file, and every other registered one with its defaults.
    pub methods: Vec<MethodEntry>,
    /// Suites.
    pub suites: Vec<Suite>,
}

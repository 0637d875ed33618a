//! Tasks, methods and suites as data. The files explain their fields.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::io;
use crate::{Error, Result};

/// What the data must be, whatever was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Rows of the data set.
    pub rows: usize,
    /// The classes, in the order of their ids.
    pub labels: Vec<String>,
    /// Share of the most frequent class, to 4 digits.
    pub majority: f64,
    /// SHA-256 of the rows.
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
        /// The file.
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
}

/// Training settings, the same for every method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Passes over the training rows.
    pub epochs: usize,
    /// Rows per step.
    pub batch_size: usize,
    /// Factor of every method's learning rates: short runs want larger ones. Default: 1.
    #[serde(default = "one")]
    pub learning_rate_factor: f64,
    /// Whether rows of like length share a batch, which saves padding. Default: no.
    #[serde(default)]
    pub group_by_length: bool,
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
    /// What it shows and what it cannot.
    pub analysis: String,
    /// `accuracy`.
    pub metric: String,
    /// Tokens kept of a text, special tokens included.
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
    /// Fields of the method's configuration.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// The grid.
    pub learning_rates: Vec<f64>,
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

/// How learning rates are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tune {
    /// The whole grid with the first seed; the best on dev wins.
    FirstSeed,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FamilyEntry {
    learning_rates: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MethodsFile {
    family: BTreeMap<String, FamilyEntry>,
    method: Vec<MethodEntry>,
}

#[derive(Deserialize)]
struct TasksFile {
    task: Vec<Task>,
}

#[derive(Deserialize)]
struct SuitesFile {
    suite: Vec<Suite>,
}

/// All definitions.
#[derive(Clone, Debug)]
pub struct Definitions {
    /// Tasks.
    pub tasks: Vec<Task>,
    /// Methods: those of the file, and every other registered one with its defaults.
    pub methods: Vec<MethodEntry>,
    /// Suites.
    pub suites: Vec<Suite>,
}

const FILES: [(&str, &str); 3] = [
    (
        "tasks.toml",
        include_str!("../../../benches/compare/tasks.toml"),
    ),
    (
        "methods.toml",
        include_str!("../../../benches/compare/methods.toml"),
    ),
    (
        "suites.toml",
        include_str!("../../../benches/compare/suites.toml"),
    ),
];

impl Definitions {
    /// The project's own definitions, or those of `dir`.
    ///
    /// # Errors
    ///
    /// [`Error::Definition`] naming the file and the field; [`Error::Io`].
    pub fn load(dir: Option<&Path>) -> Result<Self> {
        let mut texts = Vec::new();
        for (name, own) in FILES {
            texts.push(match dir {
                None => (name.to_string(), own.to_string()),
                Some(dir) => {
                    let path = dir.join(name);
                    let text = std::fs::read_to_string(&path).map_err(io(&path))?;
                    (path.display().to_string(), text)
                }
            });
        }
        let tasks = parse::<TasksFile>(&texts[0])?.task;
        let MethodsFile { family, method } = parse(&texts[1])?;
        let suites = parse::<SuitesFile>(&texts[2])?.suite;
        let methods = with_registered(method, &family, &texts[1].0)?;
        Ok(Self {
            tasks,
            methods,
            suites,
        })
    }

    /// The suite called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`].
    pub fn suite(&self, name: &str) -> Result<&Suite> {
        find("suite", &self.suites, name, |suite| &suite.name)
    }

    /// The task called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`].
    pub fn task(&self, name: &str) -> Result<&Task> {
        find("task", &self.tasks, name, |task| &task.name)
    }

    /// The methods of a choice, references first.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`].
    pub fn chosen(&self, choice: &MethodChoice) -> Result<Vec<&MethodEntry>> {
        let named = match choice {
            MethodChoice::All(word) if word == "all" => return Ok(self.methods.iter().collect()),
            MethodChoice::All(word) => {
                return Err(Error::Definition {
                    file: "suites.toml".into(),
                    reason: format!("methods = \"{word}\": write \"all\" or a list of names"),
                });
            }
            MethodChoice::Named(named) => named,
        };
        for name in named {
            find("method", &self.methods, name, |method| &method.name)?;
        }
        let chosen = |method: &&MethodEntry| method.reference || named.contains(&method.name);
        Ok(self.methods.iter().filter(chosen).collect())
    }
}

fn find<'a, T>(
    kind: &'static str,
    all: &'a [T],
    name: &str,
    name_of: impl Fn(&T) -> &String,
) -> Result<&'a T> {
    all.iter()
        .find(|item| name_of(item) == name)
        .ok_or_else(|| Error::Unknown {
            kind,
            name: name.to_string(),
            known: all
                .iter()
                .map(|item| name_of(item).as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })
}

fn parse<T: for<'de> Deserialize<'de>>((file, text): &(String, String)) -> Result<T> {
    toml::from_str(text).map_err(|error| Error::Definition {
        file: file.clone(),
        reason: error.to_string(),
    })
}

/// The entries, checked, and default ones for registered methods that have none.
fn with_registered(
    mut entries: Vec<MethodEntry>,
    families: &BTreeMap<String, FamilyEntry>,
    file: &str,
) -> Result<Vec<MethodEntry>> {
    let registered = peft::methods();
    for entry in &entries {
        if !registered.iter().any(|info| info.name == entry.method) {
            let known: Vec<_> = registered.iter().map(|info| info.name).collect();
            return Err(Error::Definition {
                file: file.into(),
                reason: format!(
                    "method `{}` configures `{}`, which is not registered; registered: {}",
                    entry.name,
                    entry.method,
                    known.join(", "),
                ),
            });
        }
        let trials = entries[0].learning_rates.len();
        if entry.learning_rates.len() != trials || trials == 0 {
            return Err(Error::Definition {
                file: file.into(),
                reason: format!(
                    "method `{}` has {} learning rates, the first one {trials}: every method \
                     gets the same number of trials",
                    entry.name,
                    entry.learning_rates.len(),
                ),
            });
        }
    }
    let trials = entries
        .first()
        .map_or(0, |entry| entry.learning_rates.len());
    for (name, family) in families {
        if family.learning_rates.len() != trials {
            return Err(Error::Definition {
                file: file.into(),
                reason: format!(
                    "family `{name}` has another number of learning rates than the methods"
                ),
            });
        }
    }
    for info in registered {
        if entries.iter().any(|entry| entry.method == info.name) {
            continue;
        }
        let family = family_key(info.family);
        let grid = families.get(&family).ok_or_else(|| Error::Definition {
            file: file.into(),
            reason: format!(
                "`{}` has no entry, nor has its family `{family}`",
                info.name
            ),
        })?;
        entries.push(MethodEntry {
            name: info.name.into(),
            method: info.name.into(),
            reference: false,
            config: Map::new(),
            learning_rates: grid.learning_rates.clone(),
        });
    }
    Ok(entries)
}

/// A family as the files and records spell it.
pub fn family_key(family: peft_core::Family) -> String {
    family.to_string().replace(' ', "-")
}

/// `task` with a suite's overriding fields.
///
/// # Errors
///
/// [`Error::Definition`] if a field does not exist or does not fit.
pub fn overridden(task: &Task, overrides: &Map<String, Value>) -> Result<Task> {
    let mut json = serde_json::to_value(task).expect("plain data");
    merge(&mut json, &Value::Object(overrides.clone()));
    serde_json::from_value(json).map_err(|error| Error::Definition {
        file: "suites.toml".into(),
        reason: format!("override of task `{}`: {error}", task.name),
    })
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_definitions_fit_together() {
        let definitions = Definitions::load(None).unwrap();
        for suite in &definitions.suites {
            for task in &suite.tasks {
                overridden(definitions.task(task).unwrap(), &suite.overrides).unwrap();
            }
            let chosen = definitions.chosen(&suite.methods).unwrap();
            assert!(chosen.iter().filter(|method| method.reference).count() >= 2);
        }
        for info in peft::methods() {
            assert!(
                definitions
                    .methods
                    .iter()
                    .any(|entry| entry.method == info.name)
            );
        }
        assert!(
            definitions
                .suite("nightly")
                .unwrap_err()
                .to_string()
                .contains("default")
        );
    }

    #[test]
    fn an_override_of_a_field_that_does_not_exist_is_refused() {
        let definitions = Definitions::load(None).unwrap();
        let mut overrides = Map::new();
        overrides.insert("trainning".into(), Value::Null);
        let task = definitions.task("uci-sentiment").unwrap();
        assert!(overridden(task, &overrides).is_err());
    }
}

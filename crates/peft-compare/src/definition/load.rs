//! Reads definitions, checks that they fit together, and adds what is registered and not listed.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::rates::rising;
use super::{Definitions, Kind, MethodChoice, MethodEntry, Suite, Task};
use crate::error::io;
use crate::reference::BASE;
use crate::registry::Registry;
use crate::{Error, Result};

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

/// The entries that a registry adds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntriesFile {
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

const FILES: [(&str, &str); 3] = [
    (
        "tasks.toml",
        include_str!("../../../../benches/compare/tasks.toml"),
    ),
    (
        "methods.toml",
        include_str!("../../../../benches/compare/methods.toml"),
    ),
    (
        "suites.toml",
        include_str!("../../../../benches/compare/suites.toml"),
    ),
];

impl Definitions {
    /// The project's own definitions, or those of `dir`, for the methods of a registry.
    ///
    /// # Errors
    ///
    /// [`Error::Definition`] naming the file and the field; [`Error::Io`].
    pub fn load(dir: Option<&Path>, registry: &Registry) -> Result<Self> {
        registry.check()?;
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
        let MethodsFile { family, mut method } = parse(&texts[1])?;
        for text in registry.entries() {
            let entries: EntriesFile = parse(&("the registry's entries".into(), text.clone()))?;
            method.extend(entries.method);
        }
        let suites = parse::<SuitesFile>(&texts[2])?.suite;
        let methods = with_registered(method, &family, registry, &texts[1].0)?;
        let definitions = Self {
            registry: registry.clone(),
            tasks,
            methods,
            suites,
        };
        definitions.check_parts(&texts[1].0)?;
        for task in &definitions.tasks {
            definitions.check_rates(task, &texts[0].0)?;
        }
        Ok(definitions)
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
    registry: &Registry,
    file: &str,
) -> Result<Vec<MethodEntry>> {
    let refuse = |reason: String| {
        Err(Error::Definition {
            file: file.into(),
            reason,
        })
    };
    for entry in &entries {
        if registry.method(&entry.method).is_err() {
            return refuse(format!(
                "method `{}` configures `{}`, which is not registered; registered: {}",
                entry.name,
                entry.method,
                registry.names(),
            ));
        }
    }
    let first = entries.iter().find(|entry| entry.trains());
    let trials = first.map_or(0, |entry| entry.learning_rates.len());
    for entry in &entries {
        let (name, found) = (&entry.name, entry.learning_rates.len());
        if !entry.trains() && found > 0 {
            return refuse(format!(
                "method `{name}` has learning rates, and trains nothing: leave them out"
            ));
        }
        if entry.trains() && (found != trials || found == 0) {
            return refuse(format!(
                "method `{name}` has {found} learning rates, the first one {trials}: every method gets \
                 the same number of trials"
            ));
        }
    }
    for entry in entries.iter().filter(|entry| entry.trains()) {
        if !rising(&entry.learning_rates) {
            return refuse(format!(
                "method `{}`: the learning rates {:?} must be above 0 and rise",
                entry.name, entry.learning_rates
            ));
        }
    }
    for (name, family) in families {
        if family.learning_rates.len() != trials {
            return refuse(format!(
                "family `{name}` has another number of learning rates than the methods"
            ));
        }
    }
    for info in registry.methods() {
        // The model as it came trains nothing, so no grid is its default.
        let listed = entries.iter().any(|entry| entry.method == info.name);
        if listed || info.name == BASE {
            continue;
        }
        let family = family_key(info.family);
        let Some(grid) = families.get(&family) else {
            return refuse(format!(
                "`{}` has no entry, nor has its family `{family}`",
                info.name
            ));
        };
        entries.push(MethodEntry {
            name: info.name.into(),
            method: info.name.into(),
            reference: false,
            kinds: Kind::all(),
            left_out: None,
            config: Map::new(),
            llama: Map::new(),
            parts: Vec::new(),
            learning_rates: grid.learning_rates.clone(),
            of_family: true,
        });
    }
    Ok(entries)
}

/// A family as the files and records spell it.
pub fn family_key(family: peft_core::method::Family) -> String {
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
        let definitions = Definitions::load(None, &Registry::library()).unwrap();
        for suite in &definitions.suites {
            for task in &suite.tasks {
                overridden(definitions.task(task).unwrap(), &suite.overrides).unwrap();
            }
            let chosen = definitions.chosen(&suite.methods).unwrap();
            for task in &suite.tasks {
                let kind = definitions.task(task).unwrap().kind;
                let references = chosen
                    .iter()
                    .filter(|method| method.reference && method.kinds.contains(&kind));
                let names: Vec<_> = references.map(|method| method.name.as_str()).collect();
                assert_eq!(names, [kind.baseline_method(), crate::reference::FULL]);
            }
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

    fn entries(text: &str) -> Result<Vec<MethodEntry>> {
        let file: MethodsFile = parse(&("methods.toml".into(), text.into()))?;
        with_registered(
            file.method,
            &file.family,
            &Registry::library(),
            "methods.toml",
        )
    }

    #[test]
    fn what_does_not_train_has_no_learning_rates() {
        let families: String = [
            "additive",
            "selective",
            "reparameterization",
            "soft-prompt",
            "hybrid",
            "reference",
        ]
        .map(|family| format!("[family.{family}]\nlearning_rates = [1e-3]\n"))
        .concat();
        let base = "[[method]]\nname = \"base\"\nmethod = \"base\"\nkinds = [\"language-model\"]\n";
        let lora = "[[method]]\nname = \"lora\"\nmethod = \"lora\"\nlearning_rates = [1e-3]\n\
                    llama = { target_modules = [\"q_proj\"] }\n";
        let read = entries(&format!("{families}{base}{lora}")).unwrap();
        assert!(!read[0].trains() && read[0].kinds == [Kind::LanguageModel]);
        assert!(read[1].trains() && read[1].kinds == Kind::all());
        assert_eq!(read[1].llama["target_modules"][0], "q_proj");
        for wrong in [
            format!("{families}{base}learning_rates = [1e-3]\n{lora}"),
            format!("{families}{base}{}", lora.replace("[1e-3]", "[]")),
            format!("{families}{base}{}", lora.replace("[1e-3]", "[1e-3, 1e-2]")),
        ] {
            let error = entries(&wrong).unwrap_err().to_string();
            assert!(error.contains("learning rates"), "{error}");
        }
    }

    #[test]
    fn a_registry_adds_entries() {
        let entry = "[[method]]\nname = \"wide\"\nmethod = \"lora\"\nlearning_rates = [1e-4, 1e-3, 1e-2]\n\
                     config = { r = 32 }\n";
        let registry = Registry::library().with_entries(entry);
        let definitions = Definitions::load(None, &registry).unwrap();
        let own = definitions.methods.iter().find(|own| own.name == "wide");
        assert_eq!(own.unwrap().config["r"], 32);
        let wrong = registry.with_entries(entry.replace("\"lora\"", "\"lorra\""));
        let error = Definitions::load(None, &wrong).unwrap_err().to_string();
        assert!(
            error.contains("lorra") && error.contains("bitfit"),
            "{error}"
        );
    }

    #[test]
    fn the_language_model_task_is_read() {
        let definitions = Definitions::load(None, &Registry::library()).unwrap();
        let task = definitions.task("austen-lm").unwrap();
        assert_eq!(task.kind, Kind::LanguageModel);
        assert_eq!(task.metric, task.kind.metric().name);
        assert_eq!(task.split.rule, crate::definition::Rule::ByText);
        assert!(task.split.general.is_some());
        let classification = definitions.task("uci-sentiment").unwrap();
        assert_eq!(classification.kind, Kind::Classification);
        assert_eq!(classification.metric, classification.kind.metric().name);
    }

    #[test]
    fn an_override_of_a_field_that_does_not_exist_is_refused() {
        let definitions = Definitions::load(None, &Registry::library()).unwrap();
        let mut overrides = Map::new();
        overrides.insert("trainning".into(), Value::Null);
        let task = definitions.task("uci-sentiment").unwrap();
        assert!(overridden(task, &overrides).is_err());
    }
}

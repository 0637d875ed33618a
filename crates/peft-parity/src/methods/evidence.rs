//! What the tests of this repository hold methods to: vendored checkpoints, and what Python reads.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use peft_core::checkpoint::{CONFIG_FILE, read_config};
use peft_core::method::MethodInfo;
use safetensors::SafeTensors;

use super::{Wrong, text};

/// Who wrote a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Upstream {
    /// Hugging Face PEFT.
    HuggingFace,
    /// AdapterHub's `adapters`.
    AdapterHub,
}

impl Upstream {
    /// Name and version.
    pub fn title(self) -> &'static str {
        match self {
            Self::HuggingFace => "Hugging Face PEFT 0.21",
            Self::AdapterHub => "AdapterHub 1.3",
        }
    }
}

/// What a checkpoint's values say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checked {
    /// Outputs of the model with the adapter.
    Outputs,
    /// Outputs of the model that it was merged into.
    Merged,
    /// Gradients of what trains.
    Gradients,
}

impl Checked {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Outputs => "outputs",
            Self::Merged => "merged outputs",
            Self::Gradients => "gradients",
        }
    }
}

/// A vendored checkpoint that a test of this crate names.
#[derive(Clone, Debug)]
pub struct VendoredCase {
    /// Its folder's name.
    pub name: String,
    /// The registered method, where the configuration tells it.
    pub method: Option<&'static str>,
    /// Who wrote it.
    pub upstream: Upstream,
    /// The kind of model, as in `bert`.
    pub model: String,
    /// What it says.
    pub checked: BTreeSet<Checked>,
}

/// A method whose files Python reads in a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The method's name.
    pub method: &'static str,
    /// What reads them.
    pub upstream: Upstream,
}

/// What the repository's tests hold methods to.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Checkpoints.
    pub cases: Vec<VendoredCase>,
    /// Files that Python reads.
    pub reads: Vec<Read>,
}

/// Where the tests are that name vendored cases.
const TESTS: &str = "crates/peft-parity/tests/golden";
/// Tests in which Python reads what is written here.
const READERS: [&str; 4] = [
    "crates/peft-parity/tests/python_reads.rs",
    "crates/peft-parity/tests/python_reads/lora.rs",
    "crates/peft-parity/tests/python_reads/weights.rs",
    "crates/peft-parity/tests/python_llama.rs",
];

impl Evidence {
    /// Looks through the repository.
    ///
    /// # Errors
    ///
    /// [`Wrong`] for what cannot be read.
    pub fn gather(root: &Path) -> Result<Self, Wrong> {
        let mut tests = String::new();
        for path in entries(&root.join(TESTS))? {
            if path.extension().is_some_and(|extension| extension == "rs") {
                tests += &text(&path)?;
            }
        }
        let mut cases = Vec::new();
        for path in entries(&root.join("crates"))? {
            let golden = path.join("tests/golden");
            if golden.is_dir() {
                find(&golden, &tests, &mut cases)?;
            }
        }
        let mut reads = Vec::new();
        for path in READERS {
            let source = text(&root.join(path))?;
            let (peft, hub) = source
                .split_once("fn adapterhub_cases()")
                .unwrap_or((&source, ""));
            for (source, upstream) in [(peft, Upstream::HuggingFace), (hub, Upstream::AdapterHub)] {
                let methods = names(source).filter_map(method_of);
                reads.extend(methods.map(|method| Read { method, upstream }));
            }
        }
        Ok(Self { cases, reads })
    }
}

/// What is in a folder, in the order of names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Wrong> {
    let wrong = |error| Wrong::new(folder, error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(wrong)? {
        paths.push(entry.map_err(wrong)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Adds the cases below `folder` that `tests` name.
fn find(folder: &Path, tests: &str, found: &mut Vec<VendoredCase>) -> Result<(), Wrong> {
    for path in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        let beside = folder.join("base").exists() && !path.ends_with("base");
        if !(beside && path.join("io.safetensors").exists()) {
            find(&path, tests, found)?;
            continue;
        }
        // What an adapter begins with is no checkpoint.
        if path.join("init.safetensors").exists() && !path.join(CONFIG_FILE).exists() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if tests.contains(&format!("\"{name}\"")) {
            found.push(case(&path, &name, &folder.join("base"))?);
        }
    }
    Ok(())
}

fn case(path: &Path, name: &str, base: &Path) -> Result<VendoredCase, Wrong> {
    let io = path.join("io.safetensors");
    let bytes = fs::read(&io).map_err(|error| Wrong::new(&io, error))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| Wrong::new(&io, error))?;
    let mut checked = BTreeSet::from([Checked::Outputs]);
    if tensors.names().contains(&"merged") {
        checked.insert(Checked::Merged);
    }
    if path.join("grads.safetensors").exists() {
        checked.insert(Checked::Gradients);
    }
    let config = if path.join(CONFIG_FILE).exists() {
        Some(read_config(path).map_err(|error| Wrong::new(path, error))?)
    } else {
        None
    };
    let is_of = |info: &&&MethodInfo| {
        let config = config.as_ref();
        config.is_some_and(|config| {
            config["peft_type"] == info.peft_type
                || info.recognises.is_some_and(|recognises| recognises(config))
        })
    };
    let method = peft::methods().iter().find(is_of).map(|info| info.name);
    // Of several adapters, the files are in folders below.
    let below = entries(path)?.into_iter().chain([path.to_path_buf()]);
    let hub = below
        .into_iter()
        .any(|path| path.join("adapter.safetensors").exists());
    Ok(VendoredCase {
        name: name.to_string(),
        method,
        upstream: if hub {
            Upstream::AdapterHub
        } else {
            Upstream::HuggingFace
        },
        model: model(base)?,
        checked,
    })
}

/// The kind of model of a base: a folder, or a file with the path of one.
fn model(base: &Path) -> Result<String, Wrong> {
    let folder = if base.is_file() {
        base.with_file_name(text(base)?.trim())
    } else {
        base.to_path_buf()
    };
    // The networks of convolutions are none of transformers'.
    if folder.join("architecture.json").is_file() {
        return Ok("cnn".to_string());
    }
    let path = folder.join("config.json");
    let config: serde_json::Value =
        serde_json::from_str(&text(&path)?).map_err(|error| Wrong::new(&path, error))?;
    let kind = config["model_type"].as_str();
    let kind = kind.ok_or_else(|| Wrong::new(&path, "it does not say `model_type`"))?;
    Ok(kind.to_string())
}

/// The names of the cases of a test: texts that open a pair, `("name", …)`.
fn names(source: &str) -> impl Iterator<Item = &str> {
    source.split('(').filter_map(|rest| {
        let rest = rest.trim_start().strip_prefix('"')?;
        let (name, rest) = rest.split_once('"')?;
        rest.starts_with(',').then_some(name)
    })
}

/// The method that a case is called after, as in `lora-dora`: the longest name that begins it.
pub fn method_of(case: &str) -> Option<&'static str> {
    let begins = |info: &&&MethodInfo| {
        let rest = case.strip_prefix(info.name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let methods = peft::methods();
    let found = methods.iter().filter(begins);
    found.map(|info| info.name).max_by_key(|name| name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_of_the_method_with_the_longest_name() {
        assert_eq!(method_of("lora"), Some("lora"));
        assert_eq!(method_of("lora-bias-only"), Some("lora"));
        assert_eq!(method_of("prefix-tuning-projection"), Some("prefix-tuning"));
        assert_eq!(method_of("loraish"), None);
        let source = "vec![(\"lora\", x), (\n    \"oft-exact\",\n y), f(\"text\")]";
        assert_eq!(names(source).collect::<Vec<_>>(), ["lora", "oft-exact"]);
    }
}

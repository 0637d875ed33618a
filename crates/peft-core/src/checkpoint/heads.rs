//! Heads beside adapters, as AdapterHub saves them: `head_config.json` and a file of tensors.
//!
//! A head of a model class of its own (`BertAdapterModel`) is a list of modules below `heads.<name>`: dropout, a linear layer,
//! perhaps more of both. One of a usual model class (`BertForSequenceClassification`) has the model's own names. Either is
//! read into the model's head, as a module that is saved whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use serde_json::Value;

use crate::checkpoint::pickled;
use crate::checkpoint::read::read_tensors;
use crate::checkpoint::respelled::of_base_model;
use crate::error::{Result, io, wrong};
use crate::files;
use crate::layout::model_layout::Layout;
use crate::method::contract::Common;
use crate::upstream::{CONFIG_FILE, HEAD_CONFIG_FILE, HEAD_FILE, PICKLED_HEAD_FILE};

type Tensors = BTreeMap<String, TensorData>;

/// Where a configuration keeps what the head's file says.
const FIELD: &str = "head_config";

/// A head that was read.
pub(crate) struct Head {
    config: Value,
    /// By the model's names.
    tensors: Tensors,
    /// Names of the model's layers.
    layers: BTreeSet<String>,
}

/// Where AdapterHub puts the first linear layer of its own heads, behind a dropout.
fn first_layer(name: &str) -> String {
    format!("heads.{name}.1.")
}

/// The file with a head's tensors, if the folder has one.
pub(crate) fn file(dir: &Path) -> Option<PathBuf> {
    let names = [HEAD_FILE, PICKLED_HEAD_FILE];
    let mut found = names
        .iter()
        .map(|name| files::readable(dir, CONFIG_FILE, name));
    found.find(|path| path.exists())
}

/// Reads the head beside an adapter, for a model that has one.
pub(crate) fn read(dir: &Path, layout: &Layout) -> Result<Option<Head>> {
    let Some(path) = file(dir) else {
        return Ok(None);
    };
    let tensors = if path.ends_with(PICKLED_HEAD_FILE) {
        pickled::read(&path, HEAD_FILE)?
    } else {
        read_tensors(&path)?
    };
    let config = read_config(dir)?;
    let heads = || layout.layers.iter().filter(|layer| layer.head);
    let names: Vec<_> = heads().map(|layer| format!("`{}`", layer.name)).collect();
    let refuse = |reason: String| Err(wrong(&path, reason));
    if names.is_empty() {
        return refuse(format!(
            "the folder has a head, and the model has none: load it on a model with a head, or delete this file and \
             {HEAD_CONFIG_FILE} to have the adapter alone"
        ));
    }
    refuse_other(&config, dir)?;
    let mut found = Head {
        config,
        tensors: Tensors::new(),
        layers: BTreeSet::new(),
    };
    let own = found.own_name();
    let tensors = of_base_model(tensors, layout).map_err(|reason| wrong(&path, reason))?;
    for (key, data) in tensors {
        let field = own
            .as_ref()
            .and_then(|own| key.strip_prefix(&first_layer(own)));
        let param = match (field, names.len()) {
            (Some(field), 1) => heads().next().and_then(|layer| layout.param(layer, field)),
            _ => layout.params.iter().find(|param| param.name == key),
        };
        let layer = param.map(|param| (param, layout.layer_of(param)));
        let Some((param, layer)) = layer.filter(|(_, layer)| layer.head) else {
            return refuse(format!(
                "the head has a tensor `{key}`, which the model's head has no place for: that is {}, of one linear \
                 layer",
                names.join(", ")
            ));
        };
        found.tensors.insert(param.name.clone(), data);
        found.layers.insert(layer.name.clone());
    }
    Ok(Some(found))
}

/// Where a head's configuration is.
fn config_file(dir: &Path) -> PathBuf {
    files::readable(dir, CONFIG_FILE, HEAD_CONFIG_FILE)
}

/// Refuses a head that computes something else than the heads here do: scores of classes from the pooled first state, or
/// those of the next token. A usual model class says what its head computes by its name, and others than these have layers of
/// the same names.
fn refuse_other(config: &Value, dir: &Path) -> Result<()> {
    let class = config["model_class"].as_str();
    let config = &config["config"];
    if !config.is_object() {
        let ends = ["ForSequenceClassification", "ForCausalLM", "LMHeadModel"];
        return match class.filter(|class| !ends.iter().any(|end| class.ends_with(end))) {
            None => Ok(()),
            Some(class) => Err(wrong(
                &config_file(dir),
                format!(
                    "the head is of a `{class}`, and only one of a model for sequence classification or causal language \
                     modelling computes what a head computes here; delete this file and the head's tensors to have the \
                     adapter alone"
                ),
            )),
        };
    }
    for (field, expected) in [
        ("head_type", Value::from("classification")),
        ("use_pooler", Value::from(true)),
    ] {
        let found = &config[field];
        if *found != expected {
            return Err(wrong(
                &config_file(dir),
                format!(
                    "`{field}` is {found}, and only a head with `{field}` {expected} computes what a head computes \
                     here; delete this file and the head's tensors to have the adapter alone"
                ),
            ));
        }
    }
    Ok(())
}

fn read_config(dir: &Path) -> Result<Value> {
    let path = config_file(dir);
    let text = fs::read_to_string(&path).map_err(io(&path))?;
    serde_json::from_str(&text).map_err(|error| wrong(&path, format!("no valid JSON: {error}")))
}

impl Head {
    /// The name of a head of AdapterHub's own model classes.
    fn own_name(&self) -> Option<String> {
        let own = self.config["config"].is_object();
        let name = self.config["name"].as_str().filter(|_| own);
        name.map(str::to_string)
    }

    /// Makes the head a part of the adapter: its layers are saved whole.
    pub(crate) fn add_to(self, common: &mut Common, tensors: &mut Tensors) {
        let modules = common.modules_to_save.get_or_insert_default();
        for layer in self.layers {
            if !modules.contains(&layer) {
                modules.push(layer);
            }
        }
        common.unknown.insert(FIELD.into(), self.config);
        tensors.extend(self.tensors);
    }

    /// The head of an adapter that had one when it was read: taken out of its configuration and its tensors. Other modules
    /// that the adapter saves whole stay with it.
    pub(crate) fn take(config: &mut Value, tensors: &mut Tensors, layout: &Layout) -> Option<Self> {
        let modules = &config["modules_to_save"];
        let modules: Vec<String> = serde_json::from_value(modules.clone()).unwrap_or_default();
        let is_head = |module: &String| {
            let mut layers = layout.layers.iter();
            layers.any(|layer| layer.head && layer.name == *module)
        };
        let (layers, others): (Vec<_>, Vec<_>) = modules.into_iter().partition(is_head);
        let fields = config.as_object_mut()?;
        if layers.is_empty() {
            return None;
        }
        let head = fields.remove(FIELD)?;
        let others = (!others.is_empty()).then_some(others);
        fields.insert("modules_to_save".into(), others.into());
        let mut found = Self {
            config: head,
            tensors: Tensors::new(),
            layers: layers.into_iter().collect(),
        };
        let own = found.own_name();
        for module in &found.layers {
            let below = format!("{module}.");
            let keys: Vec<String> = tensors
                .keys()
                .filter(|key| key.starts_with(&below))
                .cloned()
                .collect();
            for key in keys {
                let stored = match &own {
                    Some(name) => key.replacen(&below, &first_layer(name), 1),
                    None => key.clone(),
                };
                let data = tensors.remove(&key);
                found.tensors.extend(data.map(|data| (stored, data)));
            }
        }
        Some(found)
    }

    /// The content of the head's files: of the configuration and of the tensors.
    pub(crate) fn files(&self) -> (String, &Tensors) {
        let text = serde_json::to_string_pretty(&self.config).expect("JSON values serialize");
        (text, &self.tensors)
    }
}

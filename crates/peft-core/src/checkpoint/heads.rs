//! Heads beside adapters, as AdapterHub saves them: `head_config.json` and a file of tensors.
//!
//! A head of a model class of its own (`BertAdapterModel`) is a list of modules below `heads.<name>`: dropout, a linear layer,
//! perhaps more of both. Two layers with `tanh` between them are what a BERT with a pooler has. One of a usual model class (`BertForSequenceClassification`) has the model's own names. Either is
//! read into the model's head, as a module that is saved whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use serde_json::{Value, json};

use crate::checkpoint::pickled;
use crate::checkpoint::read::read_tensors;
use crate::checkpoint::respelled::of_base_model;
use crate::error::{Result, io, wrong};
use crate::files;
use crate::layout::model_layout::{Layer, Layout};
use crate::method::contract::Common;
use crate::upstream::{
    ADAPTERHUB_VERSION, CONFIG_FILE, HEAD_CONFIG_FILE, HEAD_FILE, LM_HEAD, PICKLED_HEAD_FILE,
};

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

/// A linear layer of one of AdapterHub's own heads: where its tensors are in the head's file, and which module of the model
/// computes the same.
struct OwnLayer {
    stored: String,
    module: String,
}

/// What the model projects its first state with, before `tanh`: the same as the first of two layers of a head.
const POOLER: &str = "pooler.dense";

/// What heads compute, each with the ends of the names of transformers' classes that do, and AdapterHub's types of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Computes {
    /// Scores of a text, from its pooled first state.
    Classes,
    /// Scores of each token.
    Tokens,
    /// How likely an answer begins and ends at each token.
    Answers,
    /// Scores of the next token.
    NextToken,
}

/// Of each, in this order.
const COMPUTED: &[(Computes, &[&str], &[&str])] = &[
    (
        Computes::Classes,
        &["ForSequenceClassification", "ForMultipleChoice"],
        &[
            "classification",
            "multilabel_classification",
            "multiple_choice",
        ],
    ),
    (Computes::Tokens, &["ForTokenClassification"], &["tagging"]),
    (
        Computes::Answers,
        &["ForQuestionAnswering"],
        &["question_answering"],
    ),
    (
        Computes::NextToken,
        &["ForCausalLM", "LMHeadModel"],
        &["causal_lm"],
    ),
];

impl Computes {
    /// What a head of one of transformers' classes computes.
    fn of_class(class: &str) -> Option<Self> {
        let mut all = COMPUTED.iter();
        let found = all.find(|(_, ends, _)| ends.iter().any(|end| class.ends_with(end)));
        found.map(|(computes, ..)| *computes)
    }

    /// What the model's head computes.
    fn here(layout: &Layout) -> Self {
        let named = layout.model_class.and_then(Self::of_class);
        named.unwrap_or_else(|| {
            let mut heads = layout.layers.iter().filter(|layer| layer.head);
            if heads.any(|head| head.name.rsplit('.').next() == Some(LM_HEAD)) {
                Self::NextToken
            } else {
                Self::Classes
            }
        })
    }

    fn types(self) -> &'static [&'static str] {
        let mut all = COMPUTED.iter();
        all.find(|(computes, ..)| *computes == self)
            .map_or(&[], |(_, _, types)| *types)
    }
}

/// The linear layers of one of AdapterHub's own heads; none for a head of a usual model class.
///
/// # Errors
///
/// What the head computes, in words, where no module of the model's does.
fn own_layers(config: &Value, layout: &Layout) -> std::result::Result<Vec<OwnLayer>, String> {
    let fields = &config["config"];
    let (true, Some(name)) = (fields.is_object(), config["name"].as_str()) else {
        return Ok(Vec::new());
    };
    let mut heads = layout.layers.iter().filter(|layer| layer.head);
    let (Some(head), None) = (heads.next(), heads.next()) else {
        return Err("the model has several heads, and such a head is for one".into());
    };
    // Its lists have a dropout in front of each linear layer, but for those of language models.
    let at = |index: usize, module: &str| OwnLayer {
        stored: format!("heads.{name}.{index}."),
        module: module.to_string(),
    };
    let expects = |expected: &[(&str, Value)]| -> std::result::Result<(), String> {
        let mut expected = expected.iter();
        let wrong = expected.find(|(field, expected)| fields[*field] != *expected);
        wrong.map_or(Ok(()), |(field, expected)| {
            Err(format!(
                "`{field}` is {}, and only a head with `{field}` {expected} computes what a head computes here",
                fields[*field]
            ))
        })
    };
    let computes = Computes::here(layout);
    let types = computes.types();
    if !types.iter().any(|kind| fields["head_type"] == *kind) {
        expects(&[("head_type", types[0].into())])?;
    }
    if fields["head_type"] == "multiple_choice"
        && let Some(outputs) = outputs(head, layout).filter(|outputs| *outputs != 1)
    {
        return Err(format!(
            "`head_type` is \"multiple_choice\", which gives a text one score, and the model's head gives {outputs}"
        ));
    }
    match computes {
        Computes::NextToken => {
            expects(&[
                ("layers", 1.into()),
                ("layer_norm", false.into()),
                ("bias", false.into()),
            ])?;
            Ok(vec![at(0, &head.name)])
        }
        Computes::Tokens | Computes::Answers => {
            expects(&[("layers", 1.into())])?;
            Ok(vec![at(1, &head.name)])
        }
        Computes::Classes if fields["layers"] == 2 && fields["use_pooler"] == false => {
            // The first state, a linear layer, tanh, a linear layer: a pooler and a head.
            expects(&[("activation_function", "tanh".into())])?;
            let ends = |name: &str| name == POOLER || name.ends_with(&format!(".{POOLER}"));
            let pooler = layout.layers.iter().find(|layer| ends(&layer.name));
            match pooler {
                Some(pooler) => Ok(vec![at(1, &pooler.name), at(4, &head.name)]),
                None => Err(format!(
                    "`layers` is 2, and the model has no `{POOLER}` that could be the first of them"
                )),
            }
        }
        Computes::Classes => {
            expects(&[("use_pooler", true.into()), ("layers", 1.into())])?;
            Ok(vec![at(1, &head.name)])
        }
    }
}

/// How many numbers a linear layer gives.
fn outputs(layer: &Layer, layout: &Layout) -> Option<usize> {
    layout.param(layer, "weight")?.shape().last().copied()
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
    refuse_other_class(&config, layout, dir)?;
    let own = own_layers(&config, layout).map_err(|reason| refuse_head(dir, &reason))?;
    let mut found = Head {
        config,
        tensors: Tensors::new(),
        layers: BTreeSet::new(),
    };
    let tensors = of_base_model(tensors, layout).map_err(|reason| wrong(&path, reason))?;
    for (key, data) in tensors {
        let of_own = own.iter().find_map(|layer| {
            let field = key.strip_prefix(&layer.stored)?;
            Some(format!("{}.{field}", layer.module))
        });
        let is_own = of_own.is_some();
        let name = of_own.unwrap_or_else(|| key.clone());
        let param = layout.params.iter().find(|param| param.name == name);
        let layer = param.map(|param| (param, layout.layer_of(param)));
        let Some((param, layer)) = layer.filter(|(_, layer)| layer.head || is_own) else {
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

/// A head that computes something else than the model's.
fn refuse_head(dir: &Path, reason: &str) -> crate::error::Error {
    wrong(
        &config_file(dir),
        format!("{reason}; delete this file and the head's tensors to have the adapter alone"),
    )
}

/// Refuses a head of a usual model class that says by its name that it computes something else than the model's; others have
/// layers of the same names.
fn refuse_other_class(config: &Value, layout: &Layout, dir: &Path) -> Result<()> {
    if config["config"].is_object() {
        return Ok(());
    }
    let here = Computes::here(layout);
    let class = config["model_class"].as_str();
    match class.filter(|class| Computes::of_class(class) != Some(here)) {
        None => Ok(()),
        Some(class) => {
            let ends = COMPUTED.iter().filter(|(computes, ..)| *computes == here);
            let ends: Vec<&str> = ends.flat_map(|(_, ends, _)| *ends).copied().collect();
            let ends = ends.join("` or `");
            Err(refuse_head(
                dir,
                &format!(
                    "the head is of a `{class}`, and only one of a class that ends with `{ends}` computes what this model's \
                     head computes"
                ),
            ))
        }
    }
}

/// The configuration of a head of one of transformers' classes, as AdapterHub writes it.
fn of_class(class: &str, config: &Value, layout: &Layout) -> Value {
    let mut heads = layout.layers.iter().filter(|layer| layer.head);
    let labels = heads.find_map(|head| outputs(head, layout));
    json!({
        "config": null,
        "hidden_size": config["hidden_size"],
        "model_class": class,
        "model_name": "",
        "model_type": layout.model_type,
        "name": null,
        "num_labels": labels,
        "version": ADAPTERHUB_VERSION,
    })
}

fn read_config(dir: &Path) -> Result<Value> {
    let path = config_file(dir);
    let text = fs::read_to_string(&path).map_err(io(&path))?;
    serde_json::from_str(&text).map_err(|error| wrong(&path, format!("no valid JSON: {error}")))
}

impl Head {
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

    /// The head of an adapter, taken out of its configuration and its tensors: one that it had when it was read, or that was
    /// trained on a model that says its class. Other modules that the adapter saves whole stay with it.
    pub(crate) fn take(config: &mut Value, tensors: &mut Tensors, layout: &Layout) -> Option<Self> {
        let own = own_layers(&config[FIELD], layout).unwrap_or_default();
        let is_head =
            |layer: &&Layer| layer.head || own.iter().any(|of_own| of_own.module == layer.name);
        let is_saved = |layer: &&Layer| {
            let below = format!("{}.", layer.name);
            tensors.keys().any(|key| key.starts_with(&below))
        };
        let heads = layout.layers.iter().filter(is_head).filter(is_saved);
        let layers: BTreeSet<String> = heads.map(|layer| layer.name.clone()).collect();
        if layers.is_empty() {
            return None;
        }
        let head = match config.as_object_mut()?.remove(FIELD) {
            Some(head) => head,
            None => of_class(layout.model_class?, config, layout),
        };
        let modules = &config["modules_to_save"];
        let modules: Vec<String> = serde_json::from_value(modules.clone()).unwrap_or_default();
        let mut others = modules
            .into_iter()
            .filter(|module| !layers.contains(module))
            .peekable();
        let others = others.peek().is_some().then(|| others.collect::<Vec<_>>());
        config["modules_to_save"] = others.into();
        let mut found = Self {
            config: head,
            tensors: Tensors::new(),
            layers,
        };
        for module in &found.layers {
            let below = format!("{module}.");
            let keys: Vec<String> = tensors
                .keys()
                .filter(|key| key.starts_with(&below))
                .cloned()
                .collect();
            for key in keys {
                let place = own.iter().find(|layer| layer.module == *module);
                let stored = match place {
                    Some(place) => key.replacen(&below, &place.stored, 1),
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

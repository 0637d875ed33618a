//! Reading an adapter from its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use serde_json::Value;

use crate::adapter::checkpoint_key::Style;
use crate::adapter::init::Init;
use crate::attached::view::Attached;
use crate::checkpoint::base_table::{is_base_table, is_second_copy};
use crate::checkpoint::folder::read_folder;
use crate::checkpoint::tensors::fill;
use crate::checkpoint::{heads, read, respelled};
use crate::error::{Error, Result};
use crate::layout::model_layout::Layout;
use crate::method::adapterhub::architecture;
use crate::method::contract::{Method, MethodInfo};
use crate::method::plan::Plan;
use crate::model::attach::{check_attachable, fill_plan, install};

type Tensors = BTreeMap<String, TensorData>;

/// See [`PeftModule::load_adapter`](crate::PeftModule::load_adapter).
pub(crate) fn load<M: Module>(
    model: &M,
    name: &str,
    dir: &Path,
    methods: &[&MethodInfo],
) -> Result<M> {
    let config_name = read::config_name(dir);
    let config = read::read_config(dir)?;
    let method = read_method(&config, &dir.join(&config_name), methods)?;
    let style = Style::of(&config, method.as_ref());
    let (path, tensors) = read_folder(dir, &config_name, style, method.as_ref())?;
    let adapter = Stored {
        key_name: config["name"].as_str().unwrap_or(name),
        method,
        style,
        tensors,
    };
    install_stored(
        model,
        name,
        adapter,
        Source {
            dir: Some(dir),
            path: &path,
        },
    )
}

/// An adapter as a file holds it.
pub(crate) struct Stored<'a> {
    /// The adapter's name in the keys.
    pub(crate) key_name: &'a str,
    pub(crate) method: Box<dyn Method>,
    pub(crate) style: Style,
    pub(crate) tensors: Tensors,
}

/// Where an adapter comes from.
pub(crate) struct Source<'a> {
    /// The folder, which may have a head beside the adapter; none of what comes from memory.
    pub(crate) dir: Option<&'a Path>,
    /// What errors of its tensors are said of.
    pub(crate) path: &'a Path,
}

/// Puts an adapter on the model.
pub(crate) fn install_stored<M: Module>(
    model: &M,
    name: &str,
    adapter: Stored<'_>,
    source: Source<'_>,
) -> Result<M> {
    let Stored {
        key_name,
        mut method,
        style,
        tensors,
    } = adapter;
    let Source { dir, path } = source;
    let wrong = |reason| Error::Checkpoint {
        path: path.into(),
        reason,
    };
    let mut tensors = respelled::of_compiled(tensors).map_err(wrong)?;
    let attached = check_attachable(model, name)?;
    let layout = &attached.layout;
    if style == Style::AdapterHub {
        tensors = respelled::of_base_model(tensors, layout).map_err(wrong)?;
        let head = dir.map(|dir| heads::read(dir, layout)).transpose()?;
        if let Some(head) = head.flatten() {
            head.add_to(method.common_mut(), &mut tensors);
        }
    }
    let mut plan = planned(method.as_ref(), &attached, &tensors)?;
    let renames = respelled::renames(&tensors, &plan.adapters, layout, style, key_name);
    let renames = renames.map_err(wrong)?;
    if !renames.is_empty() {
        for (key, expected) in renames {
            let data = tensors.remove(&key);
            tensors.extend(data.map(|data| (expected, data)));
        }
        // A method may go by the shapes that the file has.
        plan = planned(method.as_ref(), &attached, &tensors)?;
    }
    let used = fill_all(&mut plan, layout, style, key_name, &mut tensors).map_err(wrong)?;
    refuse_unused(layout, &tensors, &used).map_err(wrong)?;
    Ok(install(model, &attached, name, method.as_ref(), plan))
}

/// The method that wrote a configuration, with what that says.
fn read_method(config: &Value, path: &Path, methods: &[&MethodInfo]) -> Result<Box<dyn Method>> {
    let info = recognised(config, path, methods)?;
    (info.parse)(config).map_err(|error| match error {
        Error::Checkpoint { reason, .. } => Error::Checkpoint {
            path: path.into(),
            reason,
        },
        other => other,
    })
}

fn recognised<'a>(
    config: &Value,
    path: &Path,
    methods: &[&'a MethodInfo],
) -> Result<&'a MethodInfo> {
    let found = config["peft_type"].as_str();
    let fits = |info: &&&MethodInfo| match found {
        Some(found) => info.peft_type == found,
        None => info.recognises.is_some_and(|recognises| recognises(config)),
    };
    methods
        .iter()
        .find(fits)
        .copied()
        .ok_or_else(|| Error::UnknownMethod {
            path: path.into(),
            found: found.map_or_else(|| kind(config), str::to_string),
            known: methods
                .iter()
                .map(|info| info.peft_type)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// What AdapterHub calls the kind of a configuration.
fn kind(config: &Value) -> String {
    match architecture(config) {
        None => "missing".into(),
        Some(architecture) => {
            let architecture = architecture.unwrap_or("null");
            format!("missing, and AdapterHub's `architecture` is `{architecture}`")
        }
    }
}

/// The plan for a file with these tensors: parameters have a shape and no values yet.
fn planned(method: &dyn Method, attached: &Attached, tensors: &Tensors) -> Result<Plan> {
    let mut plan = Plan::new(Init::deferred(), false);
    let shapes = tensors
        .iter()
        .map(|(key, data)| (key.clone(), data.shape().to_vec()));
    plan.stored = shapes.collect();
    fill_plan(&mut plan, method, attached)?;
    Ok(plan)
}

/// Gives the planned states their values. Returns the keys that were used.
fn fill_all(
    plan: &mut Plan,
    layout: &Layout,
    style: Style,
    name: &str,
    tensors: &mut Tensors,
) -> Result<BTreeSet<String>, String> {
    let mut used = Vec::new();
    for planned in &mut plan.adapters {
        let place = layout.place_name(&planned.path);
        fill(
            &mut planned.adapter,
            style,
            &place,
            name,
            tensors,
            &mut used,
        )?;
    }
    Ok(used.into_iter().collect())
}

/// Refuses tensors that have no place, but for copies of the base model's own tables.
fn refuse_unused(
    layout: &Layout,
    tensors: &Tensors,
    used: &BTreeSet<String>,
) -> Result<(), String> {
    let mut extra = Vec::new();
    for (key, data) in tensors.iter().filter(|(key, _)| !used.contains(*key)) {
        let copy = is_second_copy(layout, tensors, key, data);
        if !copy && !is_base_table(layout, key, data)? {
            extra.push(key);
        }
    }
    extra.truncate(5);
    if extra.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "the configuration has no place for tensor {extra:?}"
        ))
    }
}

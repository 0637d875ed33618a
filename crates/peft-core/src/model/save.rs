//! Writing an adapter, or a model, to files.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use serde_json::Value;

use crate::adapter::checkpoint_key::Style;
use crate::adapter::role::Role;
use crate::attached::traversal;
use crate::attached::view::Attached;
use crate::checkpoint::heads::{self, Head};
use crate::checkpoint::write::{TensorSource, write_file, write_folder};
use crate::error::{Result, wrong};
use crate::method::contract::{FileNames, Method};
use crate::model::states::{self, Form};
use crate::upstream::CONFIG_FILE;

/// See [`PeftModule::save_adapter`](crate::PeftModule::save_adapter).
pub(crate) fn save_adapter<M: Module>(model: &M, name: &str, dir: &Path) -> Result<()> {
    let attached = traversal::gather(model);
    let layout = attached.layout.clone();
    let Saved {
        mut config,
        method,
        style,
        mut tensors,
    } = saved(attached, name, name)?;
    let head = match style {
        Style::AdapterHub => Head::take(&mut config, &mut tensors, &layout),
        Style::HuggingFace | Style::HuggingFacePrompt => None,
    };
    if style == Style::AdapterHub
        && head.is_none()
        && let Some(other) = heads::file(dir)
    {
        let reason = "the folder has the head of another adapter, which would be read as this one's: save to another folder";
        return Err(wrong(&other, reason));
    }
    let names = method.file_names().unwrap_or(FileNames {
        config: CONFIG_FILE,
        tensors: style.file(),
    });
    write_folder(dir, names, &config, &tensors, head.as_ref())
}

/// An adapter as its files hold it.
pub(crate) struct Saved {
    pub(crate) config: Value,
    pub(crate) method: Box<dyn Method>,
    pub(crate) style: Style,
    pub(crate) tensors: BTreeMap<String, TensorData>,
}

/// The adapter called `name`, as it is saved; where keys hold an adapter's name, they hold `key_name`.
pub(crate) fn saved(mut attached: Attached, name: &str, key_name: &str) -> Result<Saved> {
    let origin = attached.origin(name)?;
    let mut final_states = states::of(&attached, name)?;
    let decided = origin.method.finalize(&mut final_states)?;
    if final_states.is_changed() {
        attached.set_stacks(states::put(&attached, name, final_states));
    }
    let mut config = origin.to_json();
    if let Some(config) = config.as_object_mut() {
        config.extend(decided);
        // Upstream takes no targets to mean those that it knows for this kind of model, and leaves the
        // other layers' tensors out without a word.
        let layers = adapted_layers(&attached, name);
        if config.get("target_modules") == Some(&Value::Null) && !layers.is_empty() {
            config.insert("target_modules".into(), layers.into());
        }
    }
    let style = Style::of(&config, origin.method.as_ref());
    if style == Style::AdapterHub
        && let Some(fields) = config.as_object_mut()
    {
        fields.insert("name".into(), name.into());
    }
    Ok(Saved {
        tensors: states::exported(&attached, name, (style, key_name), Form::Stored),
        config,
        method: origin.method.boxed(),
        style,
    })
}

/// See [`PeftModule::save_model`](crate::PeftModule::save_model).
pub(crate) fn save_model<M: Module>(model: &M, file: &Path) -> Result<()> {
    let layout = traversal::gather(model).layout;
    let written = |param| TensorSource::of(param, layout.is_transposed(param));
    let tensors = layout
        .params
        .iter()
        .filter(|param| !param.is_tied())
        .map(|param| (param.name.clone(), written(param)))
        .collect();
    write_file(file, tensors)
}

/// Names of the layers whose weights an adapter changes; those that it saves whole and rows are not among them.
fn adapted_layers(attached: &Attached, name: &str) -> Vec<String> {
    let layout = &attached.layout;
    let adapted = layout.params.iter().filter(|param| {
        let stack = attached.stack(&param.path);
        let entry = stack.and_then(|stack| stack.entry(name));
        let role = entry.map(|entry| entry.adapter.module().role());
        param.field() == "weight" && role == Some(Role::Method)
    });
    adapted
        .map(|param| layout.layer_of(param).name.clone())
        .collect()
}

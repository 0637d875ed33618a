//! What is attached to a model, and the edits behind [`PeftModule`](crate::PeftModule).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::TensorData;
use serde_json::Value;

use crate::adapter::checkpoint_key::Style;
use crate::adapter::erased::{AnyTensor, with_rank};
use crate::attached::stack::{Entry, Stack};
use crate::attached::traversal::{self, Edits, Found};
use crate::checkpoint::read;
use crate::layout::model_layout::{Layout, LayoutParam};
use crate::method::contract::{AttachedMethod, Method, MethodInfo, Plan};
use crate::method::module_to_save::MODULE;
use crate::method::trainable_tokens::ROWS;
use crate::model::peft_module::PeftModule;
use crate::nn::tied_head;
use crate::{Error, Result};

/// The model's content, if an adapter called `name` can be put on it.
pub(crate) fn survey<M: Module>(model: &M, name: &str) -> Result<(Found, Layout)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(Error::AdapterName {
            name: name.to_string(),
        });
    }
    let found = traversal::gather(model);
    refuse_foreign(&found)?;
    let layout = Layout::new(found.clone());
    if is_merged(&layout) {
        return Err(Error::Merged);
    }
    if origins(&layout).contains_key(name) {
        return Err(Error::AlreadyAttached {
            name: name.to_string(),
        });
    }
    Ok((found, layout))
}

pub(crate) fn refuse_foreign(found: &Found) -> Result<()> {
    match found.params.iter().find(|param| param.foreign.is_some()) {
        None => Ok(()),
        Some(param) => Err(Error::ForeignReparameterization {
            parameter: param.path.join("."),
            found: param.foreign.clone().unwrap_or_default(),
        }),
    }
}

/// The method that wrote a configuration.
pub(crate) fn recognised<'a>(
    config: &Value,
    path: &Path,
    methods: &[&'a MethodInfo],
) -> Result<&'a MethodInfo> {
    let found = config["peft_type"].as_str();
    let fits = |info: &&&MethodInfo| match found {
        Some(found) => info.peft_type == found,
        None => (info.recognises)(config),
    };
    methods
        .iter()
        .find(fits)
        .copied()
        .ok_or_else(|| Error::UnknownMethod {
            path: path.into(),
            found: found.unwrap_or("missing").to_string(),
            known: methods
                .iter()
                .map(|info| info.peft_type)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// Carries out a plan.
pub(crate) fn install<M: Module>(
    model: &M,
    found: Found,
    name: &str,
    method: &dyn Method,
    plan: Plan,
) -> M {
    let origin = Arc::new(AttachedMethod {
        method: method.boxed(),
        notes: plan.notes,
    });
    let mut edits = Edits::default();
    for param in &found.params {
        let path = param.path.join(".");
        let trainable = plan.trained_in_place.contains(&path);
        edits.trainable.insert(path.clone(), trainable);
        if let Some(stack) = &param.stack {
            edits.stacks.insert(path, stack.clone());
        }
    }
    for site in &found.sites {
        if !site.stack.entries.is_empty() {
            edits.stacks.insert(site.path.join("."), site.stack.clone());
        }
    }
    for stack in edits.stacks.values_mut() {
        stack.mixture = None;
        for entry in &mut stack.entries {
            entry.active = false;
        }
    }
    for planned in plan.adapters {
        edits
            .stacks
            .entry(planned.path)
            .or_default()
            .entries
            .push(Entry {
                name: name.to_string(),
                active: true,
                adapter: planned.adapter,
                origin: origin.clone(),
            });
    }
    traversal::place(model, edits)
}

/// Every stack with the field path of its place.
pub(crate) fn stacks(layout: &Layout) -> impl Iterator<Item = (&str, &Stack)> {
    let params = layout
        .params
        .iter()
        .filter_map(|param| Some((param.path.as_str(), param.stack.as_ref()?)));
    let sites = layout
        .sites
        .iter()
        .map(|site| (site.path.as_str(), &site.stack));
    params.chain(sites)
}

/// The upstream name of the layer or site at a field path.
pub(crate) fn place_name(layout: &Layout, path: &str) -> String {
    let param = layout.params.iter().find(|param| param.path == path);
    match param {
        Some(param) => layout.layer_of(param).name.clone(),
        None => layout
            .sites
            .iter()
            .find(|site| site.path == path)
            .map(|site| site.name.clone())
            .unwrap_or_default(),
    }
}

pub(crate) fn names(layout: &Layout) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in stacks(layout).flat_map(|(_, stack)| &stack.entries) {
        if !names.contains(&entry.name) {
            names.push(entry.name.clone());
        }
    }
    names
}

pub(crate) fn origins(layout: &Layout) -> HashMap<&str, Arc<AttachedMethod>> {
    stacks(layout)
        .flat_map(|(_, stack)| &stack.entries)
        .map(|entry| (entry.name.as_str(), entry.origin.clone()))
        .collect()
}

pub(crate) fn unknown(name: &str, layout: &Layout) -> Error {
    let attached = names(layout);
    Error::UnknownAdapter {
        name: name.to_string(),
        attached: if attached.is_empty() {
            "none".into()
        } else {
            attached.join(", ")
        },
    }
}

pub(crate) fn is_merged(layout: &Layout) -> bool {
    stacks(layout).any(|(_, stack)| stack.merged.is_some())
}

pub(crate) fn unmerged<M: Module>(model: &M) -> Result<Layout> {
    let layout = model.layout();
    if is_merged(&layout) {
        Err(Error::Merged)
    } else {
        Ok(layout)
    }
}

/// Replaces every stack and lets Burn fold what is left into the parameters.
pub(crate) fn strip<M: Module>(model: &M, rest: impl Fn(&Stack) -> Stack) -> Result<M> {
    let found = traversal::gather(model);
    refuse_foreign(&found)?;
    let layout = Layout::new(found);
    let mut edits = Edits::default();
    // What stays quantized is taken off and put back, as Burn would compute it out.
    let mut quantized = HashMap::new();
    for (path, stack) in stacks(&layout) {
        let rest = rest(stack);
        if let (None, Some(base)) = (&rest.merged, &stack.quantized) {
            let base = Stack {
                quantized: Some(base.clone()),
                ..Stack::default()
            };
            quantized.insert(path.to_string(), base);
        }
        edits.stacks.insert(path.to_string(), rest);
    }
    // A head that is a table gets a matrix of its own where the two part.
    for (head, table) in layout.tied_weights() {
        let merged = |path: &str| edits.stacks.get(path)?.merged.clone();
        let own = match merged(&head.path) {
            None if merged(&table.path).is_some() => tied_head::parted(head, table),
            own => own,
        };
        if let Some(own) = own {
            edits.untied.insert(head.path.clone(), own);
        }
    }
    let stripped = traversal::place(model, edits).materialize();
    if quantized.is_empty() {
        return Ok(stripped);
    }
    Ok(traversal::place(
        &stripped,
        Edits {
            stacks: quantized,
            ..Edits::default()
        },
    ))
}

/// The stacks with their effective weight computed, checked to be finite.
pub(crate) fn merged(layout: &Layout) -> Result<HashMap<String, Stack>> {
    for site in &layout.sites {
        if let Some(entry) = site.stack.used().next() {
            return Err(Error::Unmergeable {
                adapter: entry.name.clone(),
                method: entry.origin.method.info().title,
                place: site.name.clone(),
            });
        }
    }
    let mut merged = HashMap::new();
    for param in &layout.params {
        let Some(stack) = &param.stack else { continue };
        if let (true, Some(entry)) = (stack.varies(), stack.used().next()) {
            return Err(Error::Composition {
                adapter: entry.name.clone(),
                reason: format!(
                    "`{}` differs between rows or tokens, so there is no one weight to merge into: `activate` \
                     adapters for all rows first",
                    param.name
                ),
            });
        }
        let beyond = |entry: &&Entry| !entry.adapter.weight_adapter().is_mergeable();
        if let Some(entry) = stack.used().find(beyond) {
            return Err(Error::Unmergeable {
                adapter: entry.name.clone(),
                method: entry.origin.method.info().title,
                place: param.name.clone(),
            });
        }
        if param.is_tied() || stack.used().next().is_none() {
            continue;
        }
        let value = stack.compose(param.base.clone()).detach();
        check_finite(layout, param, &value)?;
        merged.insert(param.path.clone(), with_merged(stack.clone(), value));
    }
    for (head, table) in layout.tied_weights() {
        if tied_head::reads_base(head, table) {
            continue;
        }
        if let Some(value) = tied_head::parted(head, table) {
            check_finite(layout, head, &value)?;
            let stack = head.stack.clone().unwrap_or_default();
            merged.insert(head.path.clone(), with_merged(stack, value));
        }
    }
    Ok(merged)
}

fn with_merged(stack: Stack, value: AnyTensor) -> Stack {
    Stack {
        merged: Some(value),
        ..stack
    }
}

/// Refuses an effective value that is not finite.
fn check_finite(layout: &Layout, param: &LayoutParam, value: &AnyTensor) -> Result<()> {
    if is_finite(value) {
        return Ok(());
    }
    // A tied head may follow what is active on its table.
    let tables = layout
        .tied_weights()
        .filter(|(head, _)| head.path == param.path);
    let of_tables = tables.filter_map(|(_, table)| table.stack.as_ref());
    let active = param.stack.iter().chain(of_tables).flat_map(Stack::active);
    let mut adapters: Vec<&str> = active.map(|entry| entry.name.as_str()).collect();
    adapters.dedup();
    Err(Error::NotFinite {
        parameter: param.name.clone(),
        adapters: adapters.join(", "),
    })
}

fn is_finite(value: &AnyTensor) -> bool {
    with_rank!(value.rank(), D => value.get::<D>().is_finite().all().into_scalar::<bool>())
}

/// Names of the layers whose weights an adapter changes; those that it saves whole and rows are not among them.
pub(crate) fn adapted_layers(layout: &Layout, name: &str) -> Vec<String> {
    let adapted = layout.params.iter().filter(|param| {
        let entry = param.stack.as_ref().and_then(|stack| stack.entry(name));
        let method = entry.map(|entry| entry.adapter.module().method());
        param.field() == "weight" && method.is_some_and(|method| method != MODULE && method != ROWS)
    });
    adapted
        .map(|param| layout.layer_of(param).name.clone())
        .collect()
}

/// The adapter's tensors by checkpoint key, as a file holds them or, `as_trained`, as they are trained.
pub(crate) fn exported(
    layout: &Layout,
    name: &str,
    style: Style,
    as_trained: bool,
) -> BTreeMap<String, TensorData> {
    let mut tensors = BTreeMap::new();
    for (path, stack) in stacks(layout) {
        for entry in stack.entries.iter().filter(|entry| entry.name == name) {
            let place = place_name(layout, path);
            let adapter = entry.adapter.module();
            let stored = (!as_trained).then(|| adapter.stored());
            let form = stored.as_deref().unwrap_or(adapter);
            read::export(form, style, &place, name, &mut tensors);
        }
    }
    tensors
}

/// The names of an adapter's tensors in memory: Hugging Face PEFT's, whatever its files have.
pub(crate) fn in_memory(layout: &Layout, name: &str) -> Style {
    let origin = origins(layout).remove(name);
    origin.map_or(Style::HuggingFace, |origin| {
        Style::upstream(origin.method.as_ref())
    })
}

/// The stacks with `tensors`, as [`exported`] gives them as they are trained, in the place of the adapter's own.
pub(crate) fn with_tensors(
    layout: &Layout,
    name: &str,
    mut tensors: BTreeMap<String, TensorData>,
) -> Result<HashMap<String, Stack>, String> {
    let mut edited = HashMap::new();
    let mut used = Vec::new();
    let style = in_memory(layout, name);
    for (path, stack) in stacks(layout) {
        let mut stack = stack.clone();
        let place = place_name(layout, path);
        for entry in &mut stack.entries {
            if entry.name == name {
                let adapter = &mut entry.adapter;
                read::fill(adapter, style, &place, name, &mut tensors, &mut used)?;
            }
        }
        edited.insert(path.to_string(), stack);
    }
    match tensors.keys().find(|key| !used.contains(key)) {
        None => Ok(edited),
        Some(key) => Err(format!("the adapter has no place for tensor `{key}`")),
    }
}

//! The states of an adapter: out of a model, and back into it.

use std::collections::{BTreeMap, HashMap};

use burn::module::Module;
use burn::tensor::TensorData;

use crate::adapter::checkpoint_key::Style;
use crate::adapter::contract::Adapter;
use crate::attached::stack::Stack;
use crate::attached::traversal;
use crate::attached::view::Attached;
use crate::checkpoint::tensors::{export, fill};
use crate::error::{Error, Result};
use crate::method::hooks::{PlacedState, States};

/// What is on a model that is not merged.
pub(crate) fn unmerged<M: Module>(model: &M) -> Result<Attached> {
    let attached = traversal::gather(model);
    attached.refuse_merged()?;
    Ok(attached)
}

/// The states of the adapter called `name`.
pub(crate) fn of(attached: &Attached, name: &str) -> Result<States> {
    let states = attached.entries_of(name).map(|(path, entry)| PlacedState {
        name: attached.layout.place_name(path),
        part: entry.part,
        adapter: entry.adapter.clone(),
    });
    let states: Vec<_> = states.collect();
    if states.is_empty() {
        return Err(attached.unknown(name));
    }
    Ok(States::new(states))
}

/// The stacks with these states of the adapter in the place of those that it has.
pub(crate) fn put(attached: &Attached, name: &str, states: States) -> HashMap<String, Stack> {
    let mut states = states.states.into_iter();
    let mut stacks = HashMap::new();
    for (path, stack) in attached.stacks() {
        let mut stack = stack.clone();
        let mut changed = false;
        for entry in stack.entries.iter_mut().filter(|entry| entry.name == name) {
            // Both are in the order of the model.
            if let Some(state) = states.next() {
                entry.adapter = state.adapter;
                changed = true;
            }
        }
        if changed {
            stacks.insert(path.to_string(), stack);
        }
    }
    stacks
}

/// Which of an adapter's two forms is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As a file holds it.
    Stored,
    /// As it is trained.
    Trained,
}

/// The adapter's tensors by checkpoint key; where keys hold an adapter's name, they hold `key_name`.
pub(crate) fn exported(
    attached: &Attached,
    name: &str,
    (style, key_name): (Style, &str),
    form: Form,
) -> BTreeMap<String, TensorData> {
    let mut tensors = BTreeMap::new();
    for (path, entry) in attached.entries_of(name) {
        let place = attached.layout.place_name(path);
        let adapter = entry.adapter.module();
        let stored = (form == Form::Stored).then(|| adapter.stored());
        let state = stored.as_deref().unwrap_or(adapter);
        export(state, style, &place, key_name, &mut tensors);
    }
    tensors
}

/// See [`AdapterState::adapter_states`](crate::state::AdapterState::adapter_states).
pub(crate) fn adapter_states<M: Module, A: Adapter>(
    model: &M,
    name: &str,
) -> Result<Vec<(String, A)>> {
    let states = of(&traversal::gather(model), name)?;
    let states = states.of::<A>();
    Ok(states
        .map(|(place, state)| (place.to_string(), state.clone()))
        .collect())
}

/// See [`AdapterState::edit_adapter`](crate::state::AdapterState::edit_adapter).
pub(crate) fn edit_adapter<M: Module, A: Adapter>(
    model: &M,
    name: &str,
    change: impl FnMut(&str, &mut A),
) -> Result<M> {
    let attached = unmerged(model)?;
    let mut states = of(&attached, name)?;
    states.edit::<A>(change);
    Ok(traversal::place(model, put(&attached, name, states)))
}

/// See [`AdapterState::freeze_adapter`](crate::state::AdapterState::freeze_adapter).
pub(crate) fn freeze_adapter<M: Module>(model: &M, name: &str) -> Result<M> {
    let attached = unmerged(model)?;
    let mut states = of(&attached, name)?;
    for placed in &mut states.states {
        placed.adapter.module_mut().freeze();
    }
    Ok(traversal::place(model, put(&attached, name, states)))
}

/// See [`AdapterState::adapter_tensors`](crate::state::AdapterState::adapter_tensors).
pub(crate) fn adapter_tensors<M: Module>(
    model: &M,
    name: &str,
) -> Result<BTreeMap<String, TensorData>> {
    let attached = traversal::gather(model);
    let style = in_memory(&attached, name)?;
    Ok(exported(&attached, name, (style, name), Form::Trained))
}

/// See [`AdapterState::with_adapter_tensors`](crate::state::AdapterState::with_adapter_tensors).
pub(crate) fn with_adapter_tensors<M: Module>(
    model: &M,
    name: &str,
    tensors: BTreeMap<String, TensorData>,
) -> Result<M> {
    let attached = unmerged(model)?;
    let style = in_memory(&attached, name)?;
    let mut states = of(&attached, name)?;
    fill_states(&mut states, style, name, tensors).map_err(|reason| Error::Tensors {
        adapter: name.to_string(),
        reason,
    })?;
    Ok(traversal::place(model, put(&attached, name, states)))
}

/// The names of an adapter's tensors in memory: Hugging Face PEFT's, whatever its files have.
fn in_memory(attached: &Attached, name: &str) -> Result<Style> {
    Ok(Style::upstream(attached.origin(name)?.method.as_ref()))
}

/// Puts `tensors`, as [`exported`] gives them as they are trained, in the place of the states' own.
fn fill_states(
    states: &mut States,
    style: Style,
    name: &str,
    mut tensors: BTreeMap<String, TensorData>,
) -> Result<(), String> {
    let mut used = Vec::new();
    for PlacedState {
        name: place,
        adapter,
        ..
    } in &mut states.states
    {
        fill(adapter, style, place, name, &mut tensors, &mut used)?;
    }
    match tensors.keys().find(|key| !used.contains(key)) {
        None => Ok(()),
        Some(key) => Err(format!("the adapter has no place for tensor `{key}`")),
    }
}

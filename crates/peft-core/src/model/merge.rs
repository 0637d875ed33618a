//! Folding adapters into the weights, and taking them off.

use std::collections::HashMap;

use burn::module::Module;

use crate::adapter::any_tensor::{AnyTensor, with_rank};
use crate::attached::stack::{Entry, Stack};
use crate::attached::traversal::{self, Edits};
use crate::attached::view::Attached;
use crate::error::{Error, Result};
use crate::layout::model_layout::LayoutParam;
use crate::model::states::unmerged;
use crate::nn::tied_head;

/// See [`PeftModule::merge_adapters`](crate::PeftModule::merge_adapters).
pub(crate) fn merge<M: Module>(model: &M) -> Result<M> {
    let attached = unmerged(model)?;
    Ok(traversal::place(model, merged(&attached)?))
}

/// See [`PeftModule::unmerge_adapters`](crate::PeftModule::unmerge_adapters).
pub(crate) fn unmerge<M: Module>(model: &M) -> M {
    let mut stacks = traversal::gather(model).changed(Stack::clone);
    stacks.retain(|_, stack| stack.merged.take().is_some());
    traversal::place(model, stacks)
}

/// See [`PeftModule::merge_and_unload`](crate::PeftModule::merge_and_unload).
pub(crate) fn merge_and_unload<M: Module>(model: &M) -> Result<M> {
    let is_merged = traversal::gather(model).is_merged();
    let merged = if is_merged {
        model.clone()
    } else {
        merge(model)?
    };
    unload_with(&merged, |stack| Stack {
        merged: stack.merged.clone(),
        ..Stack::default()
    })
}

/// See [`PeftModule::unload`](crate::PeftModule::unload).
pub(crate) fn unload<M: Module>(model: &M) -> Result<M> {
    unload_with(model, |_| Stack::default())
}

/// Replaces every stack and lets Burn fold what is left into the parameters.
fn unload_with<M: Module>(model: &M, rest: impl Fn(&Stack) -> Stack) -> Result<M> {
    let attached = traversal::gather(model);
    attached.refuse_foreign()?;
    let stacks = attached.changed(rest);
    // What stays quantized is taken off and put back, as Burn would compute it out.
    let mut quantized = HashMap::new();
    for (path, stack) in attached.stacks() {
        let is_merged = stacks.get(path).is_some_and(|rest| rest.merged.is_some());
        if let (false, Some(base)) = (is_merged, &stack.quantized) {
            let base = Stack {
                quantized: Some(base.clone()),
                ..Stack::default()
            };
            quantized.insert(path.to_string(), base);
        }
    }
    // A head that is a table gets a matrix of its own where the two part.
    let mut untied = HashMap::new();
    for (head, table) in attached.layout.tied_weights() {
        let merged = |path: &str| stacks.get(path)?.merged.clone();
        let own = match merged(&head.path) {
            None if merged(&table.path).is_some() => parted(&attached, head, table),
            own => own,
        };
        if let Some(own) = own {
            untied.insert(head.path.clone(), own);
        }
    }
    let edits = Edits {
        stacks,
        untied,
        ..Edits::default()
    };
    let unloaded = traversal::place_with(model, edits).materialize();
    if quantized.is_empty() {
        return Ok(unloaded);
    }
    Ok(traversal::place(&unloaded, quantized))
}

/// What a head multiplies by, where that is something else than its table.
fn parted(attached: &Attached, head: &LayoutParam, table: &LayoutParam) -> Option<AnyTensor> {
    let (on_head, on_table) = (attached.stack(&head.path), attached.stack(&table.path));
    tied_head::parted(on_head, &table.base, on_table)
}

/// The stacks with their effective weight computed, checked to be finite.
fn merged(attached: &Attached) -> Result<HashMap<String, Stack>> {
    let layout = &attached.layout;
    for site in &layout.sites {
        let mut active = attached.stack(&site.path).into_iter().flat_map(Stack::used);
        if let Some(entry) = active.next() {
            return Err(unmergeable(entry, &site.name));
        }
    }
    let mut merged = HashMap::new();
    for param in &layout.params {
        let Some(stack) = attached.stack(&param.path) else {
            continue;
        };
        refuse_unmergeable(stack, param)?;
        if param.is_tied() || stack.used().next().is_none() {
            continue;
        }
        let value = stack.compose(&param.base).detach();
        check_finite(attached, param, &value)?;
        merged.insert(param.path.clone(), with_merged(stack.clone(), value));
    }
    for (head, table) in layout.tied_weights() {
        let on_head = attached.stack(&head.path);
        if tied_head::reads_base(on_head, attached.stack(&table.path)) {
            continue;
        }
        if let Some(value) = parted(attached, head, table) {
            check_finite(attached, head, &value)?;
            let stack = on_head.cloned().unwrap_or_default();
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

fn unmergeable(entry: &Entry, place: &str) -> Error {
    Error::Unmergeable {
        adapter: entry.name.clone(),
        method: entry.origin.method.info().title,
        place: place.to_string(),
    }
}

/// Refuses what is active on a parameter and no change of it.
fn refuse_unmergeable(stack: &Stack, param: &LayoutParam) -> Result<()> {
    if let (true, Some(entry)) = (stack.varies(), stack.used().next()) {
        return Err(Error::Composition {
            adapter: entry.name.clone(),
            reason: format!(
                "`{}` differs between rows or tokens, so there is no one weight to merge into: `activate` adapters \
                 for all rows first",
                param.name
            ),
        });
    }
    let beyond = |entry: &&Entry| !entry.adapter.weight_adapter().is_mergeable();
    match stack.used().find(beyond) {
        None => Ok(()),
        Some(entry) => Err(unmergeable(entry, &param.name)),
    }
}

/// Refuses an effective value that is not finite.
fn check_finite(attached: &Attached, param: &LayoutParam, value: &AnyTensor) -> Result<()> {
    if is_finite(value) {
        return Ok(());
    }
    // A tied head may follow what is active on its table.
    let tables = attached
        .layout
        .tied_weights()
        .filter(|(head, _)| head.path == param.path);
    let paths = std::iter::once(param.path.as_str()).chain(tables.map(|(_, table)| &*table.path));
    let stacks = paths.filter_map(|path| attached.stack(path));
    let active = stacks.flat_map(Stack::used);
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

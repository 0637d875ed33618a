//! Which adapters take part in the forward pass, for all rows of a batch or for each.

use std::collections::HashMap;
use std::path::Path;

use burn::module::Module;

use crate::attached::rows::Names;
use crate::attached::stack::{Entry, Stack};
use crate::attached::traversal;
use crate::attached::view::Attached;
use crate::error::{Error, Result};
use crate::layout::model_layout::{LayerKind, Layout};
use crate::method::contract::MethodInfo;
use crate::model::load::load;
use crate::model::merge::unload;
use crate::model::states::unmerged;

/// See [`PeftModule::activate`](crate::PeftModule::activate).
pub(crate) fn activate<M: Module>(model: &M, names: &[&str]) -> Result<M> {
    let attached = unmerged(model)?;
    attached.refuse_unknown(names)?;
    let stacks = attached.changed(|stack| {
        let mut stack = stack.clone();
        for entry in &mut stack.entries {
            entry.active = names.contains(&entry.name.as_str());
        }
        stack.rows = None;
        stack
    });
    Ok(traversal::place(model, stacks))
}

/// See [`PeftModule::set_adapter_per_row`](crate::PeftModule::set_adapter_per_row).
pub(crate) fn set_adapter_per_row<M: Module>(model: &M, rows: &[Option<&str>]) -> Result<M> {
    let attached = unmerged(model)?;
    let named: Vec<&str> = rows.iter().flatten().copied().collect();
    attached.refuse_unknown(&named)?;
    let names: Names = rows.iter().map(|name| name.map(str::to_string)).collect();
    check_rows(&attached, &names)?;
    let stacks = attached.changed(|stack| {
        let mut stack = stack.clone();
        for entry in &mut stack.entries {
            entry.active = false;
        }
        stack.rows = Some(stack.rows_of(&names));
        stack
    });
    Ok(traversal::place(model, stacks))
}

/// Refuses rows with adapters that cannot differ from row to row.
fn check_rows(attached: &Attached, names: &[Option<String>]) -> Result<()> {
    for (path, stack) in attached.stacks() {
        let asked = |entry: &&Entry| names.iter().flatten().any(|name| *name == entry.name);
        if let Some(entry) = stack.entries.iter().find(asked)
            && !is_weight_of_linear(&attached.layout, path)
        {
            return Err(Error::PerRowAdapter {
                adapter: entry.name.clone(),
                method: entry.origin.method.info().title,
                place: path.to_string(),
            });
        }
    }
    Ok(())
}

fn is_weight_of_linear(layout: &Layout, path: &str) -> bool {
    layout.params.iter().any(|param| {
        param.path == path
            && param.field() == "weight"
            && layout.layer_of(param).kind == LayerKind::Linear
    })
}

/// See [`PeftModule::detach`](crate::PeftModule::detach).
pub(crate) fn detach<M: Module>(model: &M, name: &str) -> Result<M> {
    let attached = unmerged(model)?;
    attached.refuse_unknown(&[name])?;
    // Rows that had this adapter have none.
    let rows = attached.rows().map(|names| -> Names {
        let other = |row: &Option<String>| row.clone().filter(|row| row != name);
        names.iter().map(other).collect()
    });
    let mut kept = attached.changed(|stack| {
        let mut stack = stack.clone();
        stack.entries.retain(|entry| entry.name != name);
        stack.rows = rows.as_ref().map(|rows| stack.rows_of(rows));
        stack
    });
    kept.retain(|_, stack| !stack.entries.is_empty());
    Ok(traversal::place(&unload(model)?, kept))
}

/// See [`PeftModule::swap_adapter`](crate::PeftModule::swap_adapter).
pub(crate) fn swap_adapter<M: Module>(
    model: &M,
    name: &str,
    dir: &Path,
    methods: &[&MethodInfo],
) -> Result<M> {
    let before = unmerged(model)?;
    let new = load(&detach(model, name)?, name, dir, methods)?;
    let attached = traversal::gather(&new);
    let rows = before.rows();
    if let Some(rows) = &rows {
        check_rows(&attached, rows)?;
    }
    let mut stacks: HashMap<String, Stack> = HashMap::new();
    for (path, stack) in attached.stacks() {
        let mut stack = stack.clone();
        let old = before.stack(path);
        let position = |entry: &Entry| {
            let mut entries = old?.entries.iter();
            entries.position(|known| known.name == entry.name)
        };
        // Where the adapter is new, it stays outermost.
        let order = |entry: &Entry| position(entry).unwrap_or(usize::MAX);
        stack.entries.sort_by_key(order);
        stack.rows = rows.as_ref().map(|rows| stack.rows_of(rows));
        for entry in &mut stack.entries {
            entry.active = before.is_active(&entry.name);
        }
        stacks.insert(path.to_string(), stack);
    }
    Ok(traversal::place(&new, stacks))
}

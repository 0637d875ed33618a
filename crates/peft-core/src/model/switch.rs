//! Adapters leave a model, or take the place of another.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;

use crate::attached::composition::Composition;
use crate::attached::stack::{Entry, Stack};
use crate::attached::traversal;
use crate::error::Result;
use crate::method::contract::MethodInfo;
use crate::model::compose::{check_places, compose};
use crate::model::load::load;
use crate::model::merge::unload;
use crate::model::states::unmerged;

/// See [`PeftModule::detach`](crate::PeftModule::detach).
pub(crate) fn detach<M: Module>(model: &M, name: &str) -> Result<M> {
    let attached = unmerged(model)?;
    attached.refuse_unknown(&[name])?;
    // Rows that had this adapter have none.
    let composition = attached.composition().without(name);
    check_places(&attached, &composition)?;
    let composition = Arc::new(composition);
    let mut kept = attached.changed_by_name(|stack, place| {
        stack.entries.retain(|entry| entry.name != name);
        stack.mixture = stack.mixture_of(&composition, place);
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
    let composition = before.composition();
    let bare = compose(model, &Composition::Stack(Vec::new()))?;
    let new = load(&detach(&bare, name)?, name, dir, methods)?;
    let attached = traversal::gather(&new);
    check_places(&attached, &composition)?;
    let shared = Arc::new(composition);
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
        stack.set_composition(&shared, &attached.layout.place_name(path));
        stacks.insert(path.to_string(), stack);
    }
    Ok(traversal::place(&new, stacks))
}

//! Which modules are saved whole: those of `modules_to_save`, and the heads of tasks that have one.

use crate::error::{Error, Result};
use crate::layout::model_layout::{Layout, LayoutParam};
use crate::layout::targets::NO_EMPTY_TEXT;
use crate::method::contract::Method;
use crate::method::plan::Plan;
use crate::upstream::{CLASSIFIER_HEADS, TASKS_WITH_HEAD};

/// Plans the copies that `modules_to_save` and the task ask for.
pub(crate) fn save_modules(plan: &mut Plan, method: &dyn Method, layout: &Layout) -> Result<()> {
    let common = method.common();
    let named = common.modules_to_save.as_deref().unwrap_or_default();
    if named.iter().any(String::is_empty) {
        let (title, field) = (method.info().title, "modules_to_save");
        return Err(Error::config(title, field, named, NO_EMPTY_TEXT));
    }
    let save = |plan: &mut Plan, param: &LayoutParam| {
        if method.ties_heads() {
            plan.save_tied(layout, param);
        } else {
            plan.save_param(layout, param);
        }
    };
    let mut unmatched = Vec::new();
    for name in named {
        let mut found = false;
        for param in &layout.params {
            // Upstream takes any end of a module's name, `norm` for `input_layernorm`.
            if module_names(&layout.layer_of(param).name).any(|module| module.ends_with(name)) {
                found = true;
                save(plan, param);
            }
        }
        if !found {
            unmatched.push(name);
        }
    }
    let usual = |name: &String| CLASSIFIER_HEADS.contains(&name.as_str());
    let other = named
        .iter()
        .any(|name| usual(name) && !unmatched.contains(&name));
    if let Some(name) = unmatched.into_iter().find(|name| !(other && usual(name))) {
        return Err(Error::NoModuleToSave {
            name: name.clone(),
            available: layout.listing(),
        });
    }
    let task = common.task_type.as_deref();
    if let Some(task) = task.filter(|task| TASKS_WITH_HEAD.contains(task)) {
        let mut heads = layout
            .params
            .iter()
            .filter(|param| layout.layer_of(param).head)
            .peekable();
        if heads.peek().is_none() && named.is_empty() && plan.is_new() {
            return Err(Error::config(
                method.info().title,
                "task_type",
                task,
                "such a task trains the head: name it in modules_to_save, as this model does not say which it is",
            ));
        }
        heads.for_each(|param| save(plan, param));
    }
    Ok(())
}

/// A layer's name and those of the modules it is in.
fn module_names(layer: &str) -> impl Iterator<Item = &str> {
    layer
        .char_indices()
        .filter(|(_, c)| *c == '.')
        .map(|(at, _)| &layer[..at])
        .chain(std::iter::once(layer))
}

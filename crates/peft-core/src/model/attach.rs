//! Putting an adapter on a model.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::Module;

use crate::adapter::checkpoint_key::Style;
use crate::adapter::init::Init;
use crate::attached::stack::{AttachedMethod, Entry, Stack};
use crate::attached::traversal::{self, Edits};
use crate::attached::view::Attached;
use crate::checkpoint::tensors::{refuse_unlisted, refuse_written_twice};
use crate::error::{Error, Result};
use crate::method::contract::Method;
use crate::method::plan::Plan;
use crate::method::saved_modules::save_modules;
use crate::model::compose::refuse_unreadable;
use crate::statistics::calibration::Calibration;

/// See [`PeftModule::attach`](crate::PeftModule::attach); `calibration` is for the method's plan.
pub(crate) fn attach<M: Module>(
    model: &M,
    name: &str,
    method: &dyn Method,
    calibration: Option<&Calibration>,
) -> Result<M> {
    method.validate()?;
    let attached = check_attachable(model, name)?;
    let first = attached.layout.params.first();
    let device = first.map(|param| param.base.device()).unwrap_or_default();
    let init = if method.draws() {
        Init::from_device(&device)
    } else {
        Init::new(0)
    };
    let mut plan = Plan::new(init, true);
    plan.calibration = calibration.cloned();
    fill_plan(&mut plan, method, &attached)?;
    Ok(install(model, &attached, name, method, plan))
}

/// The model's content, if an adapter called `name` can be put on it.
pub(crate) fn check_attachable<M: Module>(model: &M, name: &str) -> Result<Attached> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(Error::AdapterName {
            name: name.to_string(),
        });
    }
    let attached = traversal::gather(model);
    attached.refuse_foreign()?;
    attached.refuse_merged()?;
    if attached.has(name) {
        return Err(Error::AlreadyAttached {
            name: name.to_string(),
        });
    }
    Ok(attached)
}

/// Plans what is saved whole, then what the method adds, and checks that it can be carried out.
pub(crate) fn fill_plan(plan: &mut Plan, method: &dyn Method, attached: &Attached) -> Result<()> {
    let layout = &attached.layout;
    let others = attached.stacks().map(|(path, stack)| {
        let names = stack.entries.iter().map(|entry| entry.name.clone());
        (path.to_string(), names.collect())
    });
    plan.others = others.collect();
    save_modules(plan, method, layout)?;
    method.plan(layout, plan)?;
    plan.sort(layout);
    let title = method.info().title;
    for (at, planned) in plan.adapters.iter().enumerate() {
        // Those of one place are planned one after the other.
        if at > 0 && plan.adapters[at - 1].path == planned.path {
            continue;
        }
        let same = plan.adapters[at..].iter();
        let same = same.take_while(|other| other.path == planned.path);
        let same = same.map(|other| (title, &other.adapter));
        refuse_unreadable(same, layout, &planned.path)?;
    }
    refuse_unlisted(title, layout, &plan.adapters)?;
    for style in [
        Style::of(&method.to_json(), method),
        Style::upstream(method),
    ] {
        refuse_written_twice(title, style, layout, &plan.adapters)?;
    }
    refuse_trained_quantized(attached, plan)
}

/// Refuses a plan that trains a quantized weight itself.
fn refuse_trained_quantized(attached: &Attached, plan: &Plan) -> Result<()> {
    let layout = &attached.layout;
    let param = layout.params.iter().find(|param| {
        param.quantized_format().is_some() && plan.trained_in_place.contains(&param.path)
    });
    match param {
        None => Ok(()),
        Some(param) => Err(Error::Packing {
            layer: layout.layer_of(param).name.clone(),
            reason: "the method trains it itself, and a quantized weight cannot be trained: dequantize the weights first"
                .to_string(),
        }),
    }
}

/// Carries out a plan.
pub(crate) fn install<M: Module>(
    model: &M,
    attached: &Attached,
    name: &str,
    method: &dyn Method,
    plan: Plan,
) -> M {
    let origin = Arc::new(AttachedMethod {
        method: method.boxed(),
        notes: plan.notes,
    });
    let trainable = attached.layout.params.iter().map(|param| {
        let trained = plan.trained_in_place.contains(&param.path);
        (param.path.clone(), trained)
    });
    let mut stacks = attached.changed(|stack| {
        let mut stack = stack.clone();
        stack.mixture = None;
        for entry in &mut stack.entries {
            entry.active = false;
        }
        stack
    });
    for planned in plan.adapters {
        let stack: &mut Stack = stacks.entry(planned.path).or_default();
        stack.entries.push(Entry {
            name: name.to_string(),
            active: true,
            part: planned.part,
            adapter: planned.adapter,
            origin: origin.clone(),
        });
    }
    let edits = Edits {
        stacks,
        trainable: trainable.collect(),
        untied: HashMap::new(),
    };
    traversal::place_with(model, edits)
}

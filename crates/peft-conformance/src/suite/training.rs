//! Conformance tests of training: gradients, the frozen base, counts, records.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};
use peft_core::PeftModule;
use peft_core::method::{Family, Method};

use super::{NAME, Verdict, ensure, text};
use crate::fixture::{Fixture, finite, same_base};

/// Names of the parameters that receive a gradient, and of those that should.
struct Received<'a> {
    gradients: &'a Gradients,
    path: Vec<String>,
    reached: Vec<String>,
    wanted: Vec<String>,
    /// What is wrong with the first gradient that holds what is no number.
    spoiled: Option<String>,
}

impl<'a> Received<'a> {
    fn in_model<M: Module>(model: &M, gradients: &'a Gradients) -> Self {
        let mut found = Self {
            gradients,
            path: vec![],
            reached: vec![],
            wanted: vec![],
            spoiled: None,
        };
        model.visit(&mut found);
        found
    }
}

impl ModuleVisitor for Received<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(if container == "Adapter" {
            format!("<{name}>")
        } else {
            name.into()
        });
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.join(".");
        if let Some(gradient) = param.base().grad(self.gradients) {
            let checked = finite(&format!("gradients of `{name}`"), &gradient.into_data());
            self.spoiled = self.spoiled.take().or(checked.err());
            self.reached.push(name.clone());
        }
        if param.is_require_grad() && name.contains('<') {
            self.wanted.push(name);
        }
    }
}

/// Guarantees: exactly the trained parameters of the adapter receive gradients, and all gradients are numbers.
///
/// If it fails: a trained parameter that gets no gradient is detached from the outputs (`valid()`, `detach()`, or a value
/// that the forward pass does not use). A parameter that gets one and is not trained is the base's, or is not set to
/// require gradients. The message names the parameters.
pub(super) fn gradients(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained(NAME, method)?;
    let gradients = fixture.loss(&model).backward();
    let found = Received::in_model(&model, &gradients);
    if let Some(problem) = found.spoiled {
        return Err(problem);
    }
    let (reached, wanted) = (found.reached, found.wanted);
    ensure(!wanted.is_empty(), || "nothing is trained".into())?;
    let without = |names: &[String], others: &[String]| -> Vec<String> {
        let rest = names.iter().filter(|name| !others.contains(name));
        rest.cloned().collect()
    };
    let (dry, stray) = (without(&wanted, &reached), without(&reached, &wanted));
    ensure(dry.is_empty(), || {
        format!("no gradient reaches the trained parameters {dry:?}")
    })?;
    ensure(stray.is_empty(), || {
        format!("gradients reach {stray:?}, which the adapter does not train")
    })
}

/// Guarantees: 30 steps of `AdamW` lower the loss by a tenth at least, and every base parameter stays the same, bit for
/// bit.
///
/// If it fails on the loss: gradients have the wrong sign or are very small, or the scale of the method makes steps
/// diverge. If it fails on a parameter: that base parameter is not frozen.
pub(super) fn training(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.attach(&fixture.base, NAME, method).map_err(text)?;
    // Soft prompts want rates ten times those of the others (Lester et al. 2021, section 3.1, and
    // every tuning since).
    let rate = if method.info().family == Family::SoftPrompt {
        5e-2
    } else {
        5e-3
    };
    let (model, losses) = fixture.train(model, 30, rate);
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    ensure(last < 0.9 * first, || {
        format!("the loss went from {first} to {last}")
    })?;
    same_base(&model, &fixture.base)
}

/// Guarantees: a model that was attached to without autodiff, forked to a device, or put to inference and back trains its
/// adapter and nothing else.
///
/// If it fails: the state keeps a tensor that is no `Param`, which stays on its device or in its graph. The message
/// names the way the model went, and the parameter that a gradient reaches.
pub(super) fn moved(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let attached = fixture.attach(&fixture.base, NAME, method).map_err(text)?;
    let device = fixture.device.clone().autodiff();
    let models = [
        (
            "attached without autodiff",
            fixture
                .attach(&fixture.base.valid(), NAME, method)
                .map_err(text)?
                .train(),
        ),
        ("forked", attached.clone().fork(&device)),
        ("put to inference and back", attached.valid().train()),
    ];
    for (what, model) in models {
        let gradients = fixture.loss(&model).backward();
        let found = Received::in_model(&model, &gradients);
        let stray = found.reached.iter().find(|name| !name.contains('<'));
        ensure(stray.is_none(), || {
            format!("{what}: a gradient reaches {stray:?}")
        })?;
        ensure(!found.reached.is_empty(), || {
            format!("{what}: no gradient reaches the adapter")
        })?;
        let (model, losses) = fixture.train(model, 3, 5e-3);
        ensure(losses[2] < losses[0], || {
            format!("{what}: losses {losses:?}")
        })?;
        same_base(&model, &fixture.base).map_err(|problem| format!("{what}: {problem}"))?;
    }
    Ok(())
}

/// Elements of all parameters that require gradients.
#[derive(Default)]
struct Trainable(usize);

impl ModuleVisitor for Trainable {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.is_require_grad() {
            self.0 += param.shape().num_elements();
        }
    }
}

/// Guarantees: trainable and total elements of `counts()` are those that Burn sees, with and without autodiff.
///
/// If it fails: a state has a parameter that requires gradients and is not among its `tensors()`, or the other way round.
pub(super) fn counts(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.attach(&fixture.base, NAME, method).map_err(text)?;
    let counts = model.counts();
    let mut trainable = Trainable::default();
    model.visit(&mut trainable);
    ensure(counts.trainable == trainable.0, || {
        format!(
            "{} counted, {} require gradients",
            counts.trainable, trainable.0
        )
    })?;
    // Adapters that do not act do not count.
    let elements = model.num_params() - fixture.elements_beside()?;
    ensure(counts.total == elements, || {
        format!("total {} counted, the model has {elements}", counts.total)
    })?;
    ensure(
        counts.trainable > 0 && counts.trainable < counts.total,
        || format!("{counts:?}"),
    )?;
    // The same numbers where there is no autodiff, and on the way back.
    ensure(model.valid().counts() == counts, || {
        "counts differ without autodiff".into()
    })?;
    ensure(model.valid().train().counts() == counts, || {
        "counts differ after train()".into()
    })
}

/// Guarantees: Burn's own records carry an adapted model. A record that is loaded into another model with the same adapter
/// gives the same outputs, bit for bit, with the adapter and without.
///
/// If it fails: part of the adapter's state is no parameter (`#[module(skip)]`) and depends on random numbers or on
/// training.
pub(super) fn records(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained(NAME, method)?;
    fixture.device.seed(992);
    let other = fixture.attach(&fixture.base, NAME, method).map_err(text)?;
    let loaded = other.load_record(model.clone().into_record());
    ensure(
        fixture.outputs(&loaded)? == fixture.outputs(&model)?,
        || "outputs changed".into(),
    )?;
    let off = loaded.disable_adapters().map_err(text)?;
    ensure(
        fixture.outputs(&off)? == fixture.outputs(&fixture.base)?,
        || "disabled outputs are not the base's".into(),
    )
}

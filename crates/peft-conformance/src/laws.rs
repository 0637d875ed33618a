//! The laws, one function each.

mod files;
mod numbers;
mod quantized;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor};
use peft_core::method::{Family, Method};
use peft_core::{Error, PeftModule};

use self::files::{adapter_file, damaged_files, devices_agree, saved};
use self::numbers::{HALF_FORMATS, half_formats, low_precision, not_a_number};
use self::quantized::quantized_base;
use crate::fixture::{Fixture, base_values, farthest, finite};

/// What a law says when it is broken.
type Verdict = Result<(), String>;

/// One law.
pub struct Law {
    /// Its name: that of the test.
    pub name: &'static str,
    /// Checks one configuration.
    pub check: fn(&Fixture, &dyn Method) -> Verdict,
}

impl Law {
    /// What of the law has no meaning on a device, in words; the law is checked without that.
    pub fn left_out(&self, device: &Device) -> Option<String> {
        if self.name != "low_precision" {
            return None;
        }
        let there = half_formats(device);
        let missing = HALF_FORMATS.iter().filter(|format| !there.contains(format));
        let missing: Vec<_> = missing.map(|(dtype, _)| format!("{dtype:?}")).collect();
        (!missing.is_empty()).then(|| format!("the backend has no {}", missing.join(" and no ")))
    }
}

/// Calls a macro with the names of all laws, so that they are listed once.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_law {
    ($($callback:ident)::+!()) => {
        $($callback)::+! {
            identity_at_init, gradients, training, disabled, merged, unmerged_exactly, saved,
            adapter_file, names, detached, several, damaged_files, counts, records, moved,
            devices_agree, low_precision, not_a_number, quantized_base
        }
    };
}

macro_rules! table {
    ($($law:ident),*) => {
        /// All laws, in the order of the battery.
        pub const LAWS: &[Law] = &[$(Law { name: stringify!($law), check: $law }),*];
    };
}

for_each_law!(table!());

/// The law called `name`.
///
/// # Panics
///
/// If there is none.
pub fn law(name: &str) -> &'static Law {
    LAWS.iter()
        .find(|law| law.name == name)
        .unwrap_or_else(|| panic!("no law is called {name}"))
}

const NAME: &str = "first";

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn text(error: Error) -> String {
    error.to_string()
}

/// Attaching changes no output, where the method promises that; else it changes some.
fn identity_at_init(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.base.attach(NAME, method).map_err(text)?;
    let distance = farthest(&fixture.outputs(&model)?, &fixture.outputs(&fixture.base)?);
    if method.info().identity_at_init {
        ensure(distance < 1e-6, || format!("outputs moved by {distance}"))
    } else {
        ensure(distance > 0.0, || {
            "outputs did not move, so promise identity_at_init".into()
        })
    }
}

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

/// Exactly the adapter's trained parameters receive gradients, and those are numbers.
fn gradients(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained(NAME, method)?;
    let gradients = fixture.loss(&model).backward();
    let found = Received::in_model(&model, &gradients);
    if let Some(problem) = found.spoiled {
        return Err(problem);
    }
    // The mean-pooled classifier does not run the pooler, so nothing trains there.
    let outside = |name: &String| !name.contains("pooler");
    let wanted: Vec<_> = found.wanted.into_iter().filter(outside).collect();
    ensure(!wanted.is_empty(), || "nothing is trained".into())?;
    ensure(found.reached == wanted, || {
        format!(
            "gradients reach {:?}, the adapter trains {wanted:?}",
            found.reached
        )
    })
}

/// Training lowers the loss, and every base parameter stays bit-equal.
fn training(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let before = base_values(&fixture.base);
    let model = fixture.base.attach(NAME, method).map_err(text)?;
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
    for ((name, now), (_, then)) in base_values(&model).iter().zip(&before) {
        ensure(now == then, || format!("base parameter `{name}` changed"))?;
    }
    Ok(())
}

/// With no adapter active, outputs are the base model's, bit for bit; activated again, the
/// adapter's.
fn disabled(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained(NAME, method)?;
    let adapted = fixture.outputs(&model)?;
    let off = model.disable_adapters().map_err(text)?;
    ensure(
        fixture.outputs(&off)? == fixture.outputs(&fixture.base)?,
        || "disabled outputs are not the base's".into(),
    )?;
    ensure(adapted != fixture.outputs(&fixture.base)?, || {
        "the adapter changes nothing".into()
    })?;
    let on = off.activate(&[NAME]).map_err(text)?;
    ensure(fixture.outputs(&on)? == adapted, || {
        "switching off and on changed outputs".into()
    })
}

/// Merged equals unmerged (so the composed path equals the activation side), kept or unloaded;
/// a method that cannot merge says so.
fn merged(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained(NAME, method)?;
    let adapted = fixture.outputs(&model)?;
    if !method.info().mergeable {
        return match model.merge_and_unload() {
            Err(Error::Unmergeable { .. }) => Ok(()),
            other => Err(format!("merging gave {:?}", other.map(|_| "a model"))),
        };
    }
    let merged = model.merge_adapters().map_err(text)?;
    let distance = farthest(&fixture.outputs(&merged)?, &adapted);
    ensure(distance < 1e-4, || {
        format!("merged outputs differ by {distance}")
    })?;
    for plain in [merged.merge_and_unload(), model.merge_and_unload()] {
        let plain = plain.map_err(text)?;
        let distance = farthest(&fixture.outputs(&plain)?, &adapted);
        ensure(distance < 1e-4, || {
            format!("unloaded outputs differ by {distance}")
        })?;
        ensure(plain.num_params() == fixture.base.num_params(), || {
            "something is left".into()
        })?;
    }
    Ok(())
}

/// Unmerging gives back outputs and base weights bit for bit.
fn unmerged_exactly(fixture: &Fixture, method: &dyn Method) -> Verdict {
    if !method.info().mergeable {
        return Ok(());
    }
    let model = fixture.trained(NAME, method)?;
    let back = model.merge_adapters().map_err(text)?.unmerge_adapters();
    ensure(fixture.outputs(&back)? == fixture.outputs(&model)?, || {
        "outputs changed".into()
    })?;
    ensure(base_values(&back) == base_values(&fixture.base), || {
        "base weights changed".into()
    })
}

/// Adapters whose names begin alike do not touch one another.
fn names(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained("a", method)?;
    let alone = fixture.outputs(&model)?;
    let both = model.attach("ab", method).map_err(text)?;
    let both = crate::perturb(both, "ab");
    ensure(both.adapters() == ["a", "ab"], || {
        format!("adapters are {:?}", both.adapters())
    })?;
    let second = fixture.outputs(&both)?;
    ensure(second != alone, || {
        "the second adapter gives the first one's outputs".into()
    })?;
    let first = both.activate(&["a"]).map_err(text)?;
    ensure(fixture.outputs(&first)? == alone, || {
        "the second adapter changed the first".into()
    })?;
    let left = both.detach("a").map_err(text)?;
    ensure(fixture.outputs(&left)? == second, || {
        "detaching one changed the other".into()
    })?;
    ensure(left.adapters() == ["ab"], || {
        format!("adapters are {:?}", left.adapters())
    })
}

/// A detached or unloaded adapter leaves nothing.
fn detached(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained(NAME, method)?;
    for bare in [model.detach(NAME), model.unload()] {
        let bare = bare.map_err(text)?;
        ensure(
            fixture.outputs(&bare)? == fixture.outputs(&fixture.base)?,
            || "outputs are not the base's".into(),
        )?;
        ensure(bare.adapters().is_empty(), || "a name is left".into())?;
        ensure(bare.num_params() == fixture.base.num_params(), || {
            "a parameter is left".into()
        })?;
    }
    match model.detach("second") {
        Err(Error::UnknownAdapter { .. }) => Ok(()),
        other => Err(format!(
            "detaching an unknown name gave {:?}",
            other.map(|_| "a model")
        )),
    }
}

/// Two adapters at once differ from each alone, do not depend on which was activated first, and
/// merge like one.
fn several(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained("a", method)?;
    let only_a = fixture.outputs(&model)?;
    let model = crate::perturb(model.attach("b", method).map_err(text)?, "b");
    let only_b = fixture.outputs(&model)?;
    let both = model.activate(&["a", "b"]).map_err(text)?;
    let outputs = fixture.outputs(&both)?;
    let turned = model.activate(&["b", "a"]).map_err(text)?;
    ensure(fixture.outputs(&turned)? == outputs, || {
        "the order of activation matters".into()
    })?;
    // Of two copies of one module only the last shows.
    let replaces = both.counts().saved_modules == both.counts().trainable;
    ensure(replaces || (outputs != only_a && outputs != only_b), || {
        "two adapters do what one does".into()
    })?;
    if method.info().mergeable {
        let merged = both.merge_and_unload().map_err(text)?;
        let distance = farthest(&fixture.outputs(&merged)?, &outputs);
        ensure(distance < 1e-4, || {
            format!("merged outputs differ by {distance}")
        })?;
    }
    match model.attach("b", method) {
        Err(Error::AlreadyAttached { .. }) => Ok(()),
        other => Err(format!(
            "attaching twice gave {:?}",
            other.map(|_| "a model")
        )),
    }
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

/// The counts are those of the model as Burn sees it.
fn counts(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.base.attach(NAME, method).map_err(text)?;
    let counts = model.counts();
    let mut trainable = Trainable::default();
    model.visit(&mut trainable);
    ensure(counts.trainable == trainable.0, || {
        format!(
            "{} counted, {} require gradients",
            counts.trainable, trainable.0
        )
    })?;
    ensure(counts.total == model.num_params(), || {
        format!(
            "total {} counted, the model has {}",
            counts.total,
            model.num_params()
        )
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

/// Burn's own records carry an adapted model: loaded into another with the same adapter attached,
/// outputs are the same, with the adapter and without.
fn records(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained(NAME, method)?;
    fixture.device.seed(992);
    let other = fixture.base.attach(NAME, method).map_err(text)?;
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

/// A model that was attached to without autodiff, moved, or put to inference and back, still
/// trains its adapter alone.
fn moved(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let before = base_values(&fixture.base);
    let attached = fixture.base.attach(NAME, method).map_err(text)?;
    let device = fixture.device.clone().autodiff();
    let models = [
        (
            "attached without autodiff",
            fixture
                .base
                .valid()
                .attach(NAME, method)
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
        ensure(base_values(&model) == before, || {
            format!("{what}: the base changed")
        })?;
    }
    Ok(())
}

//! Conformance tests of several adapters on one model.

use burn::module::Module;
use peft_core::method::Method;
use peft_core::{Error, PeftModule};

use super::{NAME, Verdict, ensure, text};
use crate::fixture::{Fixture, farthest};

/// Guarantees: adapters whose names begin alike (`a` and `ab`) do not touch each other: not when they are active, and not
/// when one is detached.
///
/// If it fails: the method keeps something outside of its adapter's state, where both adapters find it.
pub(super) fn names(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained("a", method)?;
    let alone = fixture.outputs(&model)?;
    let both = fixture.attach(&model, "ab", method).map_err(text)?;
    let both = crate::perturb(both, "ab");
    ensure(fixture.names(&both) == ["a", "ab"], || {
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
    ensure(fixture.names(&left) == ["ab"], || {
        format!("adapters are {:?}", left.adapters())
    })
}

/// Guarantees: a detached or unloaded adapter leaves nothing: outputs are the base's bit for bit, no name and no parameter
/// is left. Detaching an unknown adapter is refused.
///
/// If it fails: the method changed the base when it was attached.
pub(super) fn detached(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained(NAME, method)?;
    let bases = [Ok(fixture.base.clone()), fixture.base.unload()];
    for (bare, base) in [model.detach(NAME), model.unload()].into_iter().zip(bases) {
        let (bare, base) = (bare.map_err(text)?, base.map_err(text)?);
        ensure(
            fixture.outputs(&bare)? == fixture.outputs(&fixture.base)?,
            || "outputs are not the base's".into(),
        )?;
        ensure(bare.adapters() == base.adapters(), || {
            "a name is left".into()
        })?;
        ensure(bare.num_params() == base.num_params(), || {
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

/// Guarantees: two active adapters act together, do not depend on the order of activation, and merge into what they
/// compute (within 1e-4). Where an adapter is a copy that takes the place of what is below ([`Method::replaces`]), the last one
/// alone shows, bit for bit. A name that is taken is refused.
///
/// If it fails: `linear`, `embedding` or `conv2d` calls the base's tensor and not the layer below (`BaseLinear::forward`,
/// `BaseLinear::weight`), so that one adapter hides the other.
pub(super) fn several(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained("a", method)?;
    let only_a = fixture.outputs(&model)?;
    let model = crate::perturb(fixture.attach(&model, "b", method).map_err(text)?, "b");
    let only_b = fixture.outputs(&model)?;
    let both = model.activate(&["a", "b"]).map_err(text)?;
    let outputs = fixture.outputs(&both)?;
    let turned = model.activate(&["b", "a"]).map_err(text)?;
    ensure(fixture.outputs(&turned)? == outputs, || {
        "the order of activation matters".into()
    })?;
    // Of two copies of one module only the last shows.
    if method.replaces() {
        ensure(outputs == only_b, || {
            "the first adapter shows through the second, which takes its place".into()
        })?;
    }
    let replaces = both.counts().saved_modules == both.counts().trainable || method.replaces();
    ensure(replaces || (outputs != only_a && outputs != only_b), || {
        "two adapters do what one does".into()
    })?;
    if method.promises().mergeable {
        let merged = both.merge_and_unload().map_err(text)?;
        let distance = farthest(&fixture.outputs(&merged)?, &outputs);
        ensure(distance < 1e-4, || {
            format!("merged outputs differ by {distance}")
        })?;
    }
    match fixture.attach(&model, "b", method) {
        Err(Error::AlreadyAttached { .. }) => Ok(()),
        other => Err(format!(
            "attaching twice gave {:?}",
            other.map(|_| "a model")
        )),
    }
}

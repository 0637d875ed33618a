//! Conformance tests of what an adapted model computes: fresh, switched off, merged.

use burn::module::Module;
use peft_core::method::Method;
use peft_core::{Error, PeftModule};

use super::{NAME, Verdict, ensure, text};
use crate::fixture::{Fixture, elements_of_untied_head, farthest, is_needlessly_untied, same_base};

/// Guarantees: a fresh adapter leaves the outputs as they are (within 1e-6), if the method promises
/// `identity_at_init`. Otherwise a fresh adapter changes the outputs.
///
/// If it fails: the promise (in the method's `MethodInfo`, or `Method::promises`) is wrong, or the initial values of the adapter are: of LoRA's
/// two factors, for example, one has to be zero.
pub(super) fn identity_at_init(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.attach(&fixture.base, NAME, method).map_err(text)?;
    let distance = farthest(&fixture.outputs(&model)?, &fixture.outputs(&fixture.base)?);
    if method.promises().identity_at_init {
        ensure(distance < 1e-6, || format!("outputs moved by {distance}"))
    } else {
        ensure(distance > 0.0, || {
            "outputs did not move, so promise identity_at_init".into()
        })
    }
}

/// Guarantees: without active adapters the outputs are those of the base, bit for bit. With the adapter active again they
/// are those of the adapter, bit for bit.
///
/// If it fails: the method acts outside of its adapter states, or draws random numbers without autodiff. If the adapter
/// "changes nothing", its parameters do not reach the outputs.
pub(super) fn disabled(fixture: &Fixture, method: &dyn Method) -> Verdict {
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

/// Guarantees: a merged model computes what the adapted one computes (within 1e-4), whether it keeps its adapters or is
/// unloaded, and an unloaded model has no parameters of the adapter. A method that does not promise `mergeable` refuses.
///
/// If it fails: `compose` (the weight) and `linear`, `embedding` or `conv2d` (the activations) compute different things: a
/// forgotten scale, a transposed factor, or dropout outside of training.
pub(super) fn merged(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let model = fixture.trained(NAME, method)?;
    let adapted = fixture.outputs(&model)?;
    if !method.promises().mergeable {
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
        ensure(!is_needlessly_untied(&plain), || {
            "the unloaded model's head has a matrix of its own that is its table".into()
        })?;
        let left = plain.num_params() - elements_of_untied_head(&plain);
        ensure(left == fixture.base.num_params(), || {
            format!(
                "the unloaded model has {left} elements, the base has {}",
                fixture.base.num_params()
            )
        })?;
    }
    Ok(())
}

/// Guarantees: after merging and unmerging, outputs and base parameters are what they were, bit for bit.
///
/// If it fails: the method changed the named base parameter when it was merged. Core keeps the base beside the merged
/// weight; a method must not edit it.
pub(super) fn unmerged_exactly(fixture: &Fixture, method: &dyn Method) -> Verdict {
    if !method.promises().mergeable {
        return Ok(());
    }
    let model = fixture.trained(NAME, method)?;
    let back = model.merge_adapters().map_err(text)?.unmerge_adapters();
    ensure(fixture.outputs(&back)? == fixture.outputs(&model)?, || {
        "outputs changed".into()
    })?;
    same_base(&back, &fixture.base)
}

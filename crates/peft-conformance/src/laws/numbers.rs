//! Laws about numbers: of less precision, and what is none.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use peft_core::{Error, Method, PeftModule};
use peft_models::BertClassifier;
use peft_testing::largest;

use super::{NAME, Verdict, ensure, text};
use crate::fixture::{Fixture, base_values, farthest};

struct Cast(DType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.cast(self.0))
    }
}

/// The formats of two bytes, and how many bits their fractions have.
pub(super) const HALF_FORMATS: [(DType, i32); 2] = [(DType::F16, 10), (DType::BF16, 7)];

/// Those that a device computes in.
pub(super) fn half_formats(device: &Device) -> Vec<(DType, i32)> {
    let there = |(dtype, _): &(DType, i32)| device.supports_dtype(*dtype);
    HALF_FORMATS.into_iter().filter(there).collect()
}

/// Allowed of outputs, merged or not, in units of the last place of the largest output.
///
/// Each operation rounds its result to half a unit at most, evenly spread: 0.29 units in the mean square. The model
/// has some 60 operations one after the other, which keep the size of what goes through them (normalisation,
/// residuals): that makes 0.29 · √60 = 2.2 units, and 8 is three and a half times that, which one output of some
/// thousand would exceed. The methods here need up to 4.5.
const ULPS: f64 = 8.0;

/// Methods that are allowed more, and how much: each needs a reason.
///
/// RandLoRA was measured at 13.4 (bf16) and 7.7 (f16) where it adapts every layer with a scale of 4: its change has
/// full rank and is two to three times as large as the weight, so attention's scores are large, and the softmax
/// multiplies their rounding. Upstream's RandLoRA on the golden BERT does so, too: up to 8 units there, and 2 with a
/// scale of 1.
const MORE: &[(&str, f64)] = &[("randlora", 16.0)];

/// How far outputs are from those that they should be, in units of the last place of a format whose fractions
/// have so many bits, at the magnitude of the largest output.
fn ulps(found: &TensorData, expected: &TensorData, fraction: i32) -> f64 {
    let exponent = largest(expected.iter::<f32>()).log2().floor();
    farthest(found, expected) / (exponent - f64::from(fraction)).exp2()
}

/// In `f16` and `bf16` an adapter has the file's values, rounded, and computes what it computes in `f32` on those;
/// merges, unmerges bit for bit, and is saved and loaded again.
pub(super) fn low_precision(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let trained = fixture.trained(NAME, method)?;
    trained.save_adapter(NAME, dir.path()).map_err(text)?;
    let load = |base: &BertClassifier, dir: &Path| {
        let info = [method.info()];
        base.load_adapter(NAME, dir, &info).map_err(text)
    };
    let more = MORE.iter().find(|(name, _)| *name == method.info().name);
    let allowed = more.map_or(ULPS, |(_, allowed)| *allowed);
    let stored = |model: &BertClassifier| {
        let tensors = model.adapter_tensors(NAME).map_err(text)?.into_iter();
        let tensors = tensors.map(|(key, value)| (key, value.convert::<f32>()));
        Ok::<BTreeMap<_, _>, String>(tensors.collect())
    };
    let stored_exactly = stored(&load(&fixture.base.valid(), dir.path())?)?;
    for (dtype, fraction) in half_formats(&fixture.device) {
        let outputs = |model: &BertClassifier| {
            let outputs = fixture.outputs(model);
            let outputs = outputs.map_err(|problem| format!("{dtype:?}: {problem}"))?;
            Ok::<_, String>(outputs.convert::<f32>())
        };
        let base = fixture.base.valid().map(&mut Cast(dtype));
        let values = base_values(&base);
        let model = load(&base, dir.path())?;
        let values_there = stored(&model)?;
        for (key, value) in &stored_exactly {
            let rounded = value.clone().convert_dtype(dtype).convert::<f32>();
            ensure(values_there.get(key) == Some(&rounded), || {
                format!("{dtype:?}: `{key}` is not what the file holds, rounded")
            })?;
        }
        let here = outputs(&model)?;
        // Every value that the model has, in `f32`: from here on nothing is rounded to the format.
        let exact = outputs(&model.clone().map(&mut Cast(DType::F32)))?;
        let near = |what: &str, found: &TensorData| {
            let distance = ulps(found, &exact, fraction);
            let largest = largest(exact.iter::<f32>());
            let said = format!(
                "{dtype:?}: {what} are {distance:.2} units in the last place from those in f32, which are up to \
                 {largest:.2}"
            );
            println!("{}, {said}", method.info().name);
            ensure(distance <= allowed, || format!("{said}; {allowed} allowed"))
        };
        near("outputs", &here)?;
        if method.info().mergeable {
            let merged = model.merge_adapters().map_err(text)?;
            near("merged outputs", &outputs(&merged)?)?;
            let back = merged.unmerge_adapters();
            ensure(outputs(&back)? == here, || {
                format!("{dtype:?}: unmerged outputs changed")
            })?;
            ensure(base_values(&back) == values, || {
                format!("{dtype:?}: base weights changed")
            })?;
        }
        let again = tempfile::tempdir().map_err(|error| error.to_string())?;
        model.save_adapter(NAME, again.path()).map_err(text)?;
        let loaded = load(&base, again.path())?;
        ensure(outputs(&loaded)? == here, || {
            format!("{dtype:?}: saved and loaded, outputs changed")
        })?;
    }
    Ok(())
}

/// Puts NaN into one adapter's parameters.
struct Spoil {
    path: Vec<String>,
}

impl ModuleMapper for Spoil {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(format!("{container}:{name}"));
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let adapter = format!("Adapter:{NAME}");
        if !self.path.contains(&adapter) || !param.is_require_grad() {
            return param;
        }
        param.map(|value| (value.detach() * f32::NAN).detach().require_grad())
    }
}

/// What is no number is not merged, and the model stays as it was.
pub(super) fn not_a_number(fixture: &Fixture, method: &dyn Method) -> Verdict {
    if !method.info().mergeable {
        return Ok(());
    }
    let spoiled = fixture
        .trained(NAME, method)?
        .map(&mut Spoil { path: Vec::new() });
    for result in [spoiled.merge_adapters(), spoiled.merge_and_unload()] {
        match result {
            Err(Error::NotFinite { .. }) => {}
            Err(other) => return Err(format!("merging gave another error: {other}")),
            Ok(_) => return Err("NaN was merged".into()),
        }
    }
    ensure(base_values(&spoiled) == base_values(&fixture.base), || {
        "base weights changed".into()
    })?;
    let bare = spoiled.disable_adapters().map_err(text)?;
    ensure(
        fixture.outputs(&bare)? == fixture.outputs(&fixture.base)?,
        || "the base's outputs changed".into(),
    )
}

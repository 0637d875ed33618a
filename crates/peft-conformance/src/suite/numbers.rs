//! Conformance tests about numbers: formats of less precision, and NaN.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use peft_core::method::Method;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_testing::largest;

use super::{NAME, Verdict, ensure, registered, text};
use crate::TinyTransformer;
use crate::fixture::{Fixture, farthest, same_base};

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
/// thousand would exceed. The methods that are not named below need up to 4.5.
const ULPS: f64 = 8.0;

/// Methods that sort a weight's rows into groups when they load, and may refuse a rounded weight, whose groups are others.
const OF_THESE_WEIGHTS: &[&str] = &["adamss"];

/// Methods with cases whose change is several times as large as the weight: attention's scores are then large, the
/// softmax multiplies their rounding, and the chain above does not keep sizes. Upstream's do so, too.
///
/// In those, [`ROUNDINGS`] times what half a unit more or less in every parameter does to the outputs in f32 is
/// allowed, where that is more than [`ULPS`], and never more than [`MOST_ULPS`]. For upstream's FourierFT and
/// RandLoRA on the golden BERT, 16 bits do 1.5 times as much as that at most.
const ILL_CONDITIONED: &[&str] = &["randlora", "fourierft"];

/// See [`ILL_CONDITIONED`].
const ROUNDINGS: f64 = 2.0;

/// See [`ILL_CONDITIONED`].
const MOST_ULPS: f64 = 32.0;

/// Moves every number by half a unit in the last place of a format with so many bits of fraction, up or down.
struct HalfAUnit(i32);

impl ModuleMapper for HalfAUnit {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| {
            let coins = value.random_like(Distribution::Bernoulli(0.5)) * 2.0 - 1.0;
            value.clone() + value * coins * f64::from(-self.0 - 1).exp2()
        })
    }
}

/// How far outputs are from those that they should be, in units of the last place of a number as large as the
/// largest of these, in a format with so many bits of fraction.
fn ulps(found: &TensorData, expected: &TensorData, fraction: i32) -> f64 {
    farthest(found, expected) / (largest(expected.iter::<f32>()) * f64::from(-fraction).exp2())
}

/// Guarantees: in `f16` and `bf16` an adapter has the file's values, rounded, and computes what it computes in `f32` on
/// those; it merges, unmerges bit for bit, and is saved and loaded again.
///
/// If it fails: an intermediate result leaves the range of the format (`f16` ends at 65,504), or a step that needs more
/// precision (an inverse, a norm, a sum of many) is computed in the format. The message names the format and the distance.
pub(super) fn low_precision(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let trained = fixture.trained(NAME, method)?;
    trained.save_adapter(NAME, dir.path()).map_err(text)?;
    let load = |base: &TinyTransformer, dir: &Path| {
        base.load_adapter(NAME, dir, &registered(method))
            .map_err(text)
    };
    let stored = |model: &TinyTransformer| {
        let tensors = model.adapter_tensors(NAME).map_err(text)?.into_iter();
        let floats = |value: TensorData| {
            if value.dtype().is_float() {
                value.convert::<f32>()
            } else {
                value
            }
        };
        let tensors = tensors.map(|(key, value)| (key, floats(value)));
        Ok::<BTreeMap<_, _>, String>(tensors.collect())
    };
    let stored_exactly = stored(&load(&fixture.base.valid(), dir.path())?)?;
    for (dtype, fraction) in half_formats(&fixture.device) {
        let outputs = |model: &TinyTransformer| {
            let outputs = fixture.outputs(model);
            let outputs = outputs.map_err(|problem| format!("{dtype:?}: {problem}"))?;
            Ok::<_, String>(outputs.convert::<f32>())
        };
        let base = fixture.base.valid().map(&mut Cast(dtype));
        let model = match load(&base, dir.path()) {
            Err(why) if OF_THESE_WEIGHTS.contains(&method.info().name) => {
                println!("{}, {dtype:?}: {why}", method.info().name);
                continue;
            }
            loaded => loaded?,
        };
        let values_there = stored(&model)?;
        for (key, value) in &stored_exactly {
            let rounded = if value.dtype().is_float() {
                value.clone().convert_dtype(dtype).convert::<f32>()
            } else {
                value.clone()
            };
            ensure(values_there.get(key) == Some(&rounded), || {
                format!("{dtype:?}: `{key}` is not what the file holds, rounded")
            })?;
        }
        let here = outputs(&model)?;
        // Every value that the model has, in `f32`: from here on nothing is rounded to the format.
        let in_f32 = model.clone().map(&mut Cast(DType::F32));
        let exact = outputs(&in_f32)?;
        let mut allowed = ULPS;
        if ILL_CONDITIONED.contains(&method.info().name) {
            for seed in 0..4 {
                fixture.device.seed(seed);
                let moved = outputs(&in_f32.clone().map(&mut HalfAUnit(fraction)))?;
                let explained = ROUNDINGS * ulps(&moved, &exact, fraction);
                allowed = allowed.max(explained.min(MOST_ULPS));
            }
        }
        let near = |what: &str, found: &TensorData| {
            let distance = ulps(found, &exact, fraction);
            let largest = largest(exact.iter::<f32>());
            let said = format!(
                "{dtype:?}: {what} are {distance:.2} units in the last place from those in f32, which are up to \
                 {largest:.2}"
            );
            println!("{}, {said}", method.info().name);
            ensure(distance <= allowed, || {
                format!("{said}; {allowed:.2} allowed")
            })
        };
        near("outputs", &here)?;
        if method.promises().mergeable {
            let merged = model.merge_adapters().map_err(text)?;
            near("merged outputs", &outputs(&merged)?)?;
            let back = merged.unmerge_adapters();
            ensure(outputs(&back)? == here, || {
                format!("{dtype:?}: unmerged outputs changed")
            })?;
            same_base(&back, &base).map_err(|problem| format!("{dtype:?}: {problem}"))?;
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

/// Guarantees: an adapter with NaN is not merged: `Error::NotFinite` says so, and the model stays as it was. Methods that
/// do not merge are not checked.
///
/// If it fails: `compose` hides NaN, as a comparison or a clamp does.
pub(super) fn not_a_number(fixture: &Fixture, method: &dyn Method) -> Verdict {
    if !method.promises().mergeable {
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
    same_base(&spoiled, &fixture.base)?;
    let bare = spoiled.disable_adapters().map_err(text)?;
    ensure(
        fixture.outputs(&bare)? == fixture.outputs(&fixture.base)?,
        || "the base's outputs changed".into(),
    )
}

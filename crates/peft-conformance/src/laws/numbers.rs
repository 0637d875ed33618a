//! Laws about numbers: of less precision, and what is none.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor, TensorData};
use peft_core::{Error, Method, PeftModule};
use peft_models::BertClassifier;

use super::{NAME, Verdict, ensure, text};
use crate::fixture::{Fixture, base_values, farthest};

struct Cast(DType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.cast(self.0))
    }
}

/// As `f32`.
fn outputs(fixture: &Fixture, model: &BertClassifier) -> TensorData {
    fixture.outputs(model).convert::<f32>()
}

/// In `f16` and `bf16` an adapter computes what it computes in `f32`, to that format's rounding; merges,
/// unmerges bit for bit, and is saved and loaded again.
pub(super) fn low_precision(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let exact = fixture.trained(NAME, method)?;
    let exact_outputs = outputs(fixture, &exact);
    let moved = farthest(&exact_outputs, &outputs(fixture, &fixture.base));
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    for (dtype, epsilon) in [(DType::F16, 1e-3_f32), (DType::BF16, 8e-3)] {
        if !fixture.device.supports_dtype(dtype) {
            continue;
        }
        // The head adds up 32 numbers, and what lies before it many more.
        let near = 12.0 * epsilon * (1.0 + moved);
        let base = fixture.base.valid().map(&mut Cast(dtype));
        let values = base_values(&base);
        exact.save_adapter(NAME, dir.path()).map_err(text)?;
        let info = [method.info()];
        let model = match base.load_adapter(NAME, dir.path(), &info) {
            // References have no file.
            Err(Error::UnknownAdapter { .. }) => return Ok(()),
            other => other.map_err(text)?,
        };
        let here = outputs(fixture, &model);
        let distance = farthest(&here, &exact_outputs);
        ensure(distance < near, || {
            format!("{dtype:?}: outputs are {distance} from those in f32, {near} allowed")
        })?;
        if method.info().mergeable {
            let merged = model.merge_adapters().map_err(text)?;
            let distance = farthest(&outputs(fixture, &merged), &here);
            ensure(distance < near, || {
                format!("{dtype:?}: merged outputs differ by {distance}")
            })?;
            let back = merged.unmerge_adapters();
            ensure(outputs(fixture, &back) == here, || {
                format!("{dtype:?}: unmerged outputs changed")
            })?;
            ensure(base_values(&back) == values, || {
                format!("{dtype:?}: base weights changed")
            })?;
        }
        let again = tempfile::tempdir().map_err(|error| error.to_string())?;
        model.save_adapter(NAME, again.path()).map_err(text)?;
        let loaded = base.load_adapter(NAME, again.path(), &info).map_err(text)?;
        ensure(outputs(fixture, &loaded) == here, || {
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
        fixture.outputs(&bare) == fixture.outputs(&fixture.base),
        || "the base's outputs changed".into(),
    )
}

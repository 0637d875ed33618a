//! The conformance test about bases that are stored quantized.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData};
use peft_core::method::Method;
use peft_core::ops::quantized::{QuantizedMatrix, QuantizedWeight};
use peft_core::quantize::QuantizedModule as _;
use peft_core::quantize::{QuantizedLayer, WeightQuantizer};
use peft_core::{Error, PeftModule};
use peft_testing::largest;

use super::{NAME, Verdict, ensure, registered, text};
use crate::TinyTransformer;
use crate::fixture::{Fixture, farthest};

/// Matrices in whole numbers of -127 to 127, with one scale.
#[derive(Debug)]
struct Bytes {
    codes: Vec<i8>,
    scale: f32,
    shape: [usize; 2],
}

impl QuantizedMatrix for Bytes {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        let from = first * self.shape[1];
        for (value, code) in values.iter_mut().zip(&self.codes[from..]) {
            *value = f32::from(*code) * self.scale;
        }
    }

    fn bytes(&self) -> usize {
        self.codes.len() + 4
    }

    fn format(&self) -> &'static str {
        "bytes"
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Packs everything but heads.
struct InBytes;

impl WeightQuantizer for InBytes {
    fn pack(
        &self,
        layer: QuantizedLayer<'_>,
        values: &[f32],
    ) -> peft_core::Result<Option<QuantizedWeight>> {
        let scale = largest(values.iter().copied()) as f32 / 127.0;
        let codes = values.iter().map(|value| (value / scale).round() as i8);
        Ok(Some(QuantizedWeight::new(Bytes {
            codes: codes.collect(),
            scale,
            shape: layer.shape,
        })))
    }

    fn wants(&self, layer: QuantizedLayer<'_>) -> bool {
        !layer.head
    }
}

/// Gradients of what adapters train, in order.
struct OfAdapters<'a> {
    gradients: &'a Gradients,
    inside: usize,
    found: Vec<TensorData>,
}

impl ModuleVisitor for OfAdapters<'_> {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.inside += usize::from(container == "Adapter");
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.inside -= usize::from(container == "Adapter");
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.inside > 0
            && let Some(gradient) = param.base().grad(self.gradients)
        {
            self.found.push(gradient.into_data());
        }
    }
}

/// Dropout throws the same coins in every call.
fn gradients(fixture: &Fixture, model: &TinyTransformer) -> Vec<TensorData> {
    fixture.device.seed(2);
    let gradients = fixture.loss(model).backward();
    let mut visitor = OfAdapters {
        gradients: &gradients,
        inside: 0,
        found: Vec::new(),
    };
    model.visit(&mut visitor);
    visitor.found
}

/// Guarantees: on a quantized base an adapter computes what it computes on the values that the base has: outputs,
/// gradients, merged. The base stays quantized and as it was. What trains parameters themselves is refused.
///
/// If it fails: `linear` takes the base's tensor and not the layer below (`BaseLinear::forward`, `BaseLinear::weight`): on a
/// quantized base that tensor is a placeholder.
pub(super) fn quantized_base(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let near = 2e-5;
    let quantized = fixture.base.pack_weights(&InBytes).map_err(text)?;
    let count = quantized.quantized_weights().len();
    ensure(count > 0, || "nothing was quantized".into())?;
    let base = fixture.outputs(&quantized)?;
    let dense = fixture.with_base(quantized.unpack_weights().map_err(text)?);
    ensure(dense.base.quantized_weights().is_empty(), || {
        "dequantized and quantized still".into()
    })?;
    let distance = farthest(&base, &fixture.outputs(&dense.base)?);
    ensure(distance < near, || {
        format!("the quantized base is {distance} from its values")
    })?;
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let trained = dense.trained(NAME, method)?;
    let saved = trained.save_adapter(NAME, dir.path());
    let load = |base: &TinyTransformer| {
        base.load_adapter(NAME, dir.path(), &registered(method))
            .map_err(text)
    };
    let (here, there) = match saved {
        // References train parameters themselves.
        Err(Error::UnknownAdapter { .. }) => {
            return match fixture.attach(&quantized, NAME, method) {
                Ok(_) | Err(Error::Packing { .. }) => Ok(()),
                Err(other) => Err(format!("attaching gave another error: {other}")),
            };
        }
        other => {
            other.map_err(text)?;
            (load(&quantized)?, load(&dense.base)?)
        }
    };
    let (adapted, expected) = (fixture.outputs(&here)?, fixture.outputs(&trained)?);
    let distance = farthest(&adapted, &expected);
    ensure(distance < near, || {
        format!("outputs are {distance} from those on the values")
    })?;
    // A file may hold another form than was trained: the one that was loaded.
    let (found, expected) = (gradients(fixture, &here), gradients(fixture, &there));
    ensure(found.len() == expected.len(), || {
        "other gradients than on the values".into()
    })?;
    let largest = largest(expected.iter().flat_map(|data| data.iter::<f32>()));
    for (found, expected) in found.iter().zip(&expected) {
        let distance = farthest(found, expected);
        ensure(distance < 1e-4 * largest, || {
            format!("a gradient is {distance} from that on the values, the largest is {largest}")
        })?;
    }
    let off = here.disable_adapters().map_err(text)?;
    ensure(fixture.outputs(&off)? == base, || {
        "disabled outputs are not the quantized base's".into()
    })?;
    let bare = here.detach(NAME).map_err(text)?;
    for bare in [&bare, &here.unload().map_err(text)?] {
        ensure(bare.quantized_weights().len() == count, || {
            "the bare model is not quantized".into()
        })?;
        ensure(fixture.outputs(bare)? == base, || {
            "the bare model is another".into()
        })?;
    }
    if method.promises().mergeable {
        let merged = here.merge_adapters().map_err(text)?;
        let plain = here.merge_and_unload().map_err(text)?;
        for merged in [&merged, &plain] {
            let distance = farthest(&fixture.outputs(merged)?, &adapted);
            ensure(distance < 1e-4, || {
                format!("merged outputs differ by {distance}")
            })?;
        }
        let back = merged.unmerge_adapters();
        ensure(fixture.outputs(&back)? == adapted, || {
            "unmerged outputs changed".into()
        })?;
    }
    Ok(())
}

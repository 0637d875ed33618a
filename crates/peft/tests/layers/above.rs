//! Methods above an adapter that is no change of a weight: those that only call what lies below run there, on a dense and
//! on a quantized base, and those that read its weight are refused.

use burn::module::Param;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::core::device::cpu_devices;
use peft::core::method::prelude::*;
use peft::core::method::{Family, LINEAR_EMBEDDING_AND_CONV};
use peft::core::nn::{AdaptedForward as _, ForwardContext};
use peft::core::quantize::QuantizedModule as _;
use peft::core::{PeftModule as _, Result};
use peft::quantization::QuantizationConfig;
use peft_conformance::perturb;
use serde_json::json;

use crate::table::needed;
use crate::zoo::{WIDTH, Zoo, values};

/// Lets everything pass, and has no weight.
#[derive(Module, Adapter, Debug)]
pub(crate) struct Opaque {
    #[tensor("nothing")]
    nothing: Param<Tensor<1>>,
}

impl WeightAdapter for Opaque {
    fn compose<const D: usize>(&self, _weight: Tensor<D>) -> Tensor<D> {
        panic!("the weight of what has none is read")
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        base.forward(input)
    }

    fn embedding(&self, ids: Tensor<2, Int>, base: &dyn BaseEmbedding) -> Tensor<3> {
        base.forward(ids)
    }

    fn conv2d(&self, input: Tensor<4>, base: &dyn BaseConv2d) -> Tensor<4> {
        base.forward(input)
    }

    fn is_mergeable(&self) -> bool {
        false
    }

    fn needs_weight(&self) -> bool {
        false
    }

    fn keeps_weight(&self) -> bool {
        false
    }
}

/// [`Opaque`] on one layer.
#[method_config(
    OPAQUE, peft_type = "OPAQUE", title = "Opaque", family = Reparameterization, identity_at_init, new(),
    reference = "a method of this test"
)]
pub(crate) struct OpaqueConfig {
    targets: Targets,
    common: Common,
}

impl LinearMethod for OpaqueConfig {
    type State = Opaque;

    const LAYERS: &'static [LayerKind] = LINEAR_EMBEDDING_AND_CONV;

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<Opaque> {
        Ok(Opaque {
            nothing: plan.init().zeros([1], target.like()),
        })
    }
}

const LAYERS: [&str; 4] = ["linear", "embedding", "conv1d", "conv2d_groups"];

fn through(model: &Zoo, layer: &str, device: &Device) -> TensorData {
    let context = ForwardContext::new();
    let line = values([2, WIDTH, 7], 3, device);
    match layer {
        "linear" => {
            let rows: Tensor<2> = values([5, WIDTH], 3, device);
            model.linear.adapted_in(rows, &context).into_data()
        }
        "embedding" => {
            let ids = Tensor::<2, Int>::from_data([[1, 3, 4], [5, 6, 39]], device);
            model.embedding.adapted_in(ids, &context).into_data()
        }
        "conv1d" => model.conv1d.adapted_in(line, &context).into_data(),
        _ => {
            let picture = values([2, WIDTH, 7, 5], 7, device);
            model
                .conv2d_groups
                .adapted_in(picture, &context)
                .into_data()
        }
    }
}

/// The method as it is alone on the layer, with every dropout at a half if `drops`.
fn method(info: &MethodInfo, layer: &str, drops: bool) -> Box<dyn Method> {
    let mut given = needed(info.name);
    given["peft_type"] = info.peft_type.into();
    given["target_modules"] = json!([layer]);
    let method = (info.parse)(&given).unwrap();
    if !drops {
        return method;
    }
    let mut json = method.to_json();
    for (field, value) in json.as_object_mut().unwrap() {
        if field.ends_with("dropout") && value.is_number() {
            *value = json!(0.5);
        }
    }
    // Not every method has all that its fields can say.
    (info.parse)(&json).unwrap_or(method)
}

/// Titles of the methods that are refused above [`Opaque`] on the layer. All others run there.
fn refused(base: &Zoo, layer: &str, drops: bool, device: &Device) -> Vec<&'static str> {
    let below = OpaqueConfig::new().with_targets([layer]);
    let packed = base
        .pack_weights(&QuantizationConfig::nf4().with_skip_modules(Vec::<String>::new()))
        .unwrap();
    let mut refused = Vec::new();
    let methods = peft::methods().into_iter();
    for info in methods.filter(|info| info.family != Family::SoftPrompt) {
        let method = method(info, layer, drops);
        for (kind, base) in [("dense", base), ("nf4", &packed)] {
            let attached = |base: &Zoo| {
                device.seed(9);
                base.attach("above", method.as_ref())
            };
            // It takes other layers, or needs data or a weight that it can train itself.
            let Ok(alone) = attached(base) else {
                continue;
            };
            if alone.adapters().is_empty() {
                continue;
            }
            let model = attached(&base.attach("below", &below).unwrap()).unwrap();
            device.seed(9);
            let alone = perturb(alone, "above");
            device.seed(9);
            let model = perturb(model, "above");
            match model.activate(&["below", "above"]) {
                Err(Error::Composition { .. }) => {
                    if kind == "dense" {
                        refused.push(info.title);
                    } else {
                        assert!(refused.contains(&info.title), "{} on {kind}", info.title);
                    }
                }
                Err(other) => panic!("{}: {other}", info.title),
                Ok(both) => {
                    device.seed(7);
                    let output = through(&both, layer, device);
                    if drops {
                        continue;
                    }
                    device.seed(7);
                    let expected = through(&alone, layer, device);
                    let distance =
                        peft_testing::farthest(output.iter::<f32>(), expected.iter::<f32>());
                    assert!(distance < 1e-4, "{} on {kind}: {distance}", info.title);
                }
            }
        }
    }
    refused
}

#[test]
fn what_only_calls_the_layer_below_runs_where_there_is_no_weight() {
    for (_, device) in cpu_devices() {
        for drops in [false, true] {
            let device = device.clone().autodiff();
            let base = Zoo::new(&device);
            for layer in LAYERS {
                println!(
                    "{layer} {drops} {:?}",
                    refused(&base, layer, drops, &device)
                );
            }
        }
    }
}

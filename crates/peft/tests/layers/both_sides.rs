//! Methods on convolutions: the layer called with adapters computes what its composed kernel does, and so do gradients.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::conv::{Conv1d, Conv2d};
use burn::tensor::module::{conv1d, conv2d};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use peft::additive::Ia3Config;
use peft::core::method::Method;
use peft::core::nn::{AdaptedForward, ForwardContext};
use peft::core::state::AdapterState as _;
use peft::core::{Composition, Error, PeftModule, device::cpu_devices};
use peft::reparameterization::{
    BoftConfig, HiraConfig, HraConfig, LohaConfig, LokrConfig, LoraConfig, LoraConv2d, OftConfig,
};
use peft_conformance::perturb;
use peft_testing::{farthest, largest};

use crate::zoo::{WIDTH, Zoo, values};

/// Names of the convolutions.
const LAYERS: [&str; 4] = ["conv1d", "conv1d_groups", "conv2d", "conv2d_groups"];

fn methods(layer: &str) -> Vec<(&'static str, Box<dyn Method>)> {
    let targets = [layer];
    vec![
        ("lora", Box::new(LoraConfig::new(4).with_targets(targets))),
        (
            "dora",
            Box::new(LoraConfig::new(4).with_use_dora(true).with_targets(targets)),
        ),
        ("hira", Box::new(HiraConfig::new(4).with_targets(targets))),
        ("loha", Box::new(LohaConfig::new(4).with_targets(targets))),
        (
            "loha with cores",
            Box::new(
                LohaConfig::new(4)
                    .with_use_effective_conv2d(true)
                    .with_targets(targets),
            ),
        ),
        ("lokr", Box::new(LokrConfig::new(2).with_targets(targets))),
        (
            "lokr with a core",
            Box::new(
                LokrConfig::new(2)
                    .with_use_effective_conv2d(true)
                    .with_decompose_both(true)
                    .with_targets(targets),
            ),
        ),
        ("oft", Box::new(OftConfig::new(8).with_targets(targets))),
        ("boft", Box::new(BoftConfig::new(4).with_targets(targets))),
        ("hra", Box::new(HraConfig::new(4).with_targets(targets))),
        ("ia3", Box::new(Ia3Config::new().with_targets(targets))),
        (
            "ia3 of inputs",
            Box::new(
                Ia3Config::new()
                    .with_targets(targets)
                    .with_feedforward_modules(targets),
            ),
        ),
    ]
}

/// Something to look at, `[2, 64, 7, 5]`, of layers of one axis `[2, 64, 7]`.
struct Pictures(Tensor<4>);

impl Pictures {
    fn new(device: &Device) -> Self {
        Self(values([2, WIDTH, 7, 5], 7, device))
    }

    fn line(&self) -> Tensor<3> {
        self.0.clone().narrow(3, 0, 1).squeeze_dim(3)
    }

    /// The layer's output, flat: with adapters acting on what flows, or with the composed kernel.
    fn through(&self, model: &Zoo, layer: &str, adapted: bool) -> Tensor<1> {
        let context = ForwardContext::new();
        let one = |layer: &Conv1d| {
            if adapted {
                layer.adapted_in(self.line(), &context)
            } else {
                layer.forward(self.line())
            }
        };
        let two = |layer: &Conv2d| {
            if adapted {
                layer.adapted_in(self.0.clone(), &context)
            } else {
                layer.forward(self.0.clone())
            }
        };
        match layer {
            "conv1d" => one(&model.conv1d).flatten(0, 2),
            "conv1d_groups" => one(&model.conv1d_groups).flatten(0, 2),
            "conv2d" => two(&model.conv2d).flatten(0, 3),
            _ => two(&model.conv2d_groups).flatten(0, 3),
        }
    }
}

/// Gradients of all that is trained, in the order of the model.
struct Collect<'a> {
    gradients: &'a Gradients,
    found: Vec<TensorData>,
    missing: usize,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.base();
        if value.is_require_grad() {
            match value.grad(self.gradients) {
                Some(gradient) => self.found.push(gradient.into_data()),
                None => self.missing += 1,
            }
        }
    }
}

fn gradients(model: &Zoo, output: Tensor<1>) -> Vec<TensorData> {
    let weights = Tensor::arange(0..output.dims()[0] as i64, &output.device()).float();
    let gradients = (output * (weights * 0.37).sin()).sum().backward();
    let mut collect = Collect {
        gradients: &gradients,
        found: Vec::new(),
        missing: 0,
    };
    model.visit(&mut collect);
    assert_eq!(collect.missing, 0, "what is trained has a gradient");
    assert!(!collect.found.is_empty());
    collect.found
}

fn far(a: &TensorData, b: &TensorData) -> f64 {
    let size = largest(b.iter::<f32>()).max(1e-3);
    farthest(a.iter::<f32>(), b.iter::<f32>()) / size
}

#[test]
fn both_sides_agree_and_files_bring_them_back() {
    for (device_name, device) in cpu_devices() {
        let autodiff = device.clone().autodiff();
        let base = Zoo::new(&autodiff);
        let pictures = Pictures::new(&autodiff);
        for layer in LAYERS {
            let plain = pictures.through(&base, layer, true).into_data();
            for (name, method) in methods(layer) {
                let place = format!("{name} on {layer}, {device_name}");
                let model = base.attach("a", method.as_ref()).unwrap();
                let before = pictures.through(&model, layer, true).into_data();
                assert!(far(&before, &plain) < 1e-5, "{place}: a fresh one acts");
                let model = perturb(model, "a");
                let adapted = pictures.through(&model, layer, true);
                let output = adapted.clone().into_data();
                assert!(far(&output, &plain) > 1e-3, "{place}: it does nothing");
                let of_adapted = gradients(&model, adapted);
                let groups = layer.ends_with("groups");
                if groups && name.ends_with("ora") {
                    // No kernel of the layer's shape does it.
                    assert!(
                        matches!(model.merge_adapters(), Err(Error::Unmergeable { .. })),
                        "{place}"
                    );
                } else {
                    let composed = pictures.through(&model, layer, false);
                    assert!(
                        far(&output, &composed.clone().into_data()) < 1e-4,
                        "{place}"
                    );
                    let of_composed = gradients(&model, composed);
                    for (a, b) in of_adapted.iter().zip(&of_composed) {
                        assert!(far(a, b) < 1e-3, "{place}: gradients, {}", far(a, b));
                    }
                    let merged = model.merge_and_unload().unwrap();
                    let merged = pictures.through(&merged, layer, true).into_data();
                    assert!(far(&merged, &output) < 1e-4, "{place}: merged");
                }
                let dir = tempfile::tempdir().unwrap();
                model.save_adapter("a", dir.path()).unwrap();
                let loaded = base.load_adapter("b", dir.path(), &peft::methods());
                let loaded = loaded.unwrap_or_else(|error| panic!("{place}: {error}"));
                let again = pictures.through(&loaded, layer, true).into_data();
                assert_eq!(again, output, "{place}: loaded");
            }
        }
    }
}

/// Upstream's sum, by Burn's own convolutions: A on all channels, then B with the layer's groups.
#[test]
fn lora_on_groups_sees_all_channels() {
    for (_, device) in cpu_devices() {
        let device = device.autodiff();
        let base = Zoo::new(&device);
        let pictures = Pictures::new(&device);
        for layer in ["conv1d_groups", "conv2d_groups"] {
            let config = LoraConfig::new(4).with_alpha(6.0).with_targets([layer]);
            let model = perturb(base.attach("a", &config).unwrap(), "a");
            let (_, state) = model.adapter_states::<LoraConv2d>("a").unwrap().remove(0);
            let (a, b) = (state.lora_a.val(), state.lora_b.val());
            assert_eq!(state.groups(), 2);
            assert_eq!([a.dims()[1], b.dims()[1]], [WIDTH, 2]);
            let shape = |key: &str| {
                let tensors = model.adapter_tensors("a").unwrap();
                let key = format!("base_model.model.{layer}.lora_{key}.weight");
                tensors[&key].shape().to_vec()
            };
            let added: Tensor<1> = if layer == "conv1d_groups" {
                assert_eq!(shape("A"), [4, WIDTH, 3]);
                assert_eq!(shape("B"), [WIDTH, 2, 1]);
                let options = ConvOptions::new_with_padding([1], [(2, 1)], [2], 1);
                let down = conv1d(pictures.line(), a.squeeze_dim(3), None, options);
                let options = ConvOptions::new([1], [0], [1], 2);
                conv1d(down, b.squeeze_dim(3), None, options).flatten(0, 2)
            } else {
                assert_eq!(shape("A"), [4, WIDTH, 3, 1]);
                assert_eq!(shape("B"), [WIDTH, 2, 1, 1]);
                let options = ConvOptions::new_with_padding([1, 1], [(2, 1), (0, 1)], [2, 1], 1);
                let down = conv2d(pictures.0.clone(), a, None, options);
                let options = ConvOptions::new([1, 1], [0, 0], [1, 1], 2);
                conv2d(down, b, None, options).flatten(0, 3)
            };
            let plain = pictures.through(&base, layer, true);
            assert!(
                far(
                    &(added.clone() + plain.clone()).into_data(),
                    &plain.clone().into_data()
                ) > 1e-3
            );
            let expected = plain + added * 1.5;
            let found = pictures.through(&model, layer, true);
            assert!(
                far(&found.into_data(), &expected.into_data()) < 1e-5,
                "{layer}"
            );
        }
    }
}

#[test]
fn rows_have_adapters_of_their_own() {
    for (_, device) in cpu_devices() {
        let device = device.autodiff();
        let base = Zoo::new(&device);
        let pictures = Pictures::new(&device);
        for layer in LAYERS {
            let config = LohaConfig::new(4).with_targets([layer]);
            let model = perturb(base.attach("a", &config).unwrap(), "a");
            let model = perturb(model.attach("b", &config).unwrap(), "b");
            let alone = |name: &str| {
                let model = model.activate(&[name]).unwrap();
                pictures.through(&model, layer, true).into_data()
            };
            let rows = Composition::PerRow(vec![Some("b".into()), Some("a".into())]);
            let both = model.set_composition(&rows).unwrap();
            let both = pictures.through(&both, layer, true).into_data();
            let half = both.num_elements() / 2;
            let (a, b) = (alone("a"), alone("b"));
            assert!(far(&a, &b) > 1e-3, "{layer}");
            let expected = b.iter::<f32>().take(half).chain(a.iter::<f32>().skip(half));
            assert!(farthest(both.iter::<f32>(), expected) < 1e-4, "{layer}");
        }
    }
}

/// Without a word of the model's, A is of a group's channels, and the kernel itself changes.
#[test]
fn groups_that_the_model_does_not_name_are_one() {
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    let mut base = Zoo::new(&device);
    let named = std::mem::take(&mut base.names);
    let config = LoraConfig::new(3).with_targets(["conv2d_groups"]);
    let model = perturb(base.attach("a", &config).unwrap(), "a");
    let pictures = Pictures::new(&device);
    let adapted = pictures.through(&model, "conv2d_groups", true).into_data();
    let composed = pictures.through(&model, "conv2d_groups", false).into_data();
    assert!(far(&adapted, &composed) < 1e-5);
    // What sees all channels is another adapter, which needs the number of groups.
    let whole = Zoo {
        names: named,
        ..base.clone()
    };
    let config = LoraConfig::new(4).with_targets(["conv2d_groups"]);
    let of_groups = whole.attach("a", &config).unwrap();
    let dir = tempfile::tempdir().unwrap();
    of_groups.save_adapter("a", dir.path()).unwrap();
    let refused = base.load_adapter("b", dir.path(), &peft::methods());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("shape"), "{refused}");
    // A file of one group's channels means the same in a model that names the groups.
    model.save_adapter("a", dir.path()).unwrap();
    let loaded = whole.load_adapter("b", dir.path(), &peft::methods());
    let found = pictures.through(&loaded.unwrap(), "conv2d_groups", true);
    assert_eq!(found.into_data(), adapted);
}

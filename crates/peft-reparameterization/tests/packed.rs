//! Adapters on bases that are packed, or changed under them.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor};
use peft_core::PeftModule as _;
use peft_core::device::cpu_devices;
use peft_core::nn::AdaptedForward as _;
use peft_core::ops::quantized::{QuantizedMatrix, QuantizedWeight};
use peft_core::quantize::QuantizedModule as _;
use peft_core::quantize::{QuantizedLayer, WeightQuantizer};
use peft_core::state::AdapterState as _;
use peft_reparameterization::{LoraConfig, LoraLinear, METHODS};

/// Rows as they are.
#[derive(Debug)]
struct Plain {
    values: Vec<f32>,
    shape: [usize; 2],
}

impl QuantizedMatrix for Plain {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        let from = first * self.shape[1];
        values.copy_from_slice(&self.values[from..from + values.len()]);
    }

    fn bytes(&self) -> usize {
        4 * self.values.len()
    }

    fn format(&self) -> &'static str {
        "plain"
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

struct AsTheyAre;

impl WeightQuantizer for AsTheyAre {
    fn pack(
        &self,
        layer: QuantizedLayer<'_>,
        values: &[f32],
    ) -> peft_core::Result<Option<QuantizedWeight>> {
        Ok(Some(QuantizedWeight::new(Plain {
            values: values.to_vec(),
            shape: layer.shape,
        })))
    }
}

/// A field has the name that the path of adapters has.
#[derive(Module, Debug)]
struct Net {
    peft: Linear,
    other: Linear,
}

impl Net {
    fn new(device: &Device) -> Self {
        Self {
            peft: LinearConfig::new(6, 5).init(device),
            other: LinearConfig::new(5, 4).init(device),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.other.adapted(self.peft.adapted(x).tanh())
    }
}

/// The largest difference; what is no number is larger than all.
fn farthest(one: Tensor<2>, other: Tensor<2>) -> f32 {
    let differences = (one - other).abs().into_data();
    let differences = differences.iter::<f32>();
    differences.fold(0.0, |most, next| if next <= most { most } else { next })
}

fn lora() -> LoraConfig {
    LoraConfig::new(2)
        .with_alpha(6.0)
        .with_init_lora_weights(false)
}

/// Merging computes the norms anew, from the weights themselves.
fn as_merged(model: &Net, x: &Tensor<2>, what: &str) {
    let merged = model.merge_and_unload().unwrap().forward(x.clone());
    // Twice: what the first pass kept is used in the second.
    for _ in 0..2 {
        let error = farthest(model.forward(x.clone()), merged.clone());
        assert!(error <= 1e-5, "{what}: {error}");
    }
}

/// Changes the base, and adapters, as loading a record does.
struct Scale(f64);

impl ModuleMapper for Scale {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trained = param.is_require_grad();
        let scale = self.0;
        param.map(|value| (value.detach() * scale).detach().set_require_grad(trained))
    }
}

#[test]
fn norms_of_dora_are_those_of_the_base_there_is() {
    for (name, device) in cpu_devices() {
        for device in [device.clone(), device.autodiff()] {
            let x = Tensor::<2>::random([3, 6], Distribution::Default, &device);
            let base = Net::new(&device);
            let model = base.attach("mine", &lora().with_use_dora(true)).unwrap();
            let model = model
                .edit_adapter::<LoraLinear>("mine", |_, state| {
                    let magnitude = state.magnitude.as_mut().unwrap();
                    magnitude.value = magnitude.value.clone().map(|value| (value * 1.5).detach());
                })
                .unwrap();
            as_merged(&model, &x, name);

            let scaled = model.clone().map(&mut Scale(1.7));
            as_merged(&scaled, &x, "a base that was changed");
            as_merged(&model, &x, "the model that it was changed from");

            let edited = model
                .edit_adapter::<LoraLinear>("mine", |_, state| {
                    state.lora_b = state.lora_b.clone().map(|value| (value * -3.0).detach());
                })
                .unwrap();
            as_merged(&edited, &x, "a state that was edited");

            let packed = model.pack_weights(&AsTheyAre).unwrap();
            as_merged(&packed, &x, "a quantized base");
            let error = farthest(packed.forward(x.clone()), model.forward(x.clone()));
            assert!(error <= 1e-6, "{name}: {error}");
            // Quantized anew after a change.
            let scaled = packed.unpack_weights().unwrap().map(&mut Scale(0.6));
            as_merged(&scaled, &x, "an unpacked base");
            as_merged(
                &scaled.pack_weights(&AsTheyAre).unwrap(),
                &x,
                "packed again",
            );

            let above = base
                .attach("below", &lora())
                .unwrap()
                .attach("mine", &lora().with_use_dora(true))
                .unwrap();
            as_merged(&above, &x, "alone");
            let both = above.activate(&["below", "mine"]).unwrap();
            as_merged(&both, &x, "on top of another");
            as_merged(&both.activate(&["mine"]).unwrap(), &x, "alone again");

            let dir = tempfile::tempdir().unwrap();
            edited.save_adapter("mine", dir.path()).unwrap();
            let swapped = model.swap_adapter("mine", dir.path(), METHODS).unwrap();
            as_merged(&swapped, &x, "a file in its place");
            let error = farthest(swapped.forward(x.clone()), edited.forward(x.clone()));
            assert!(error <= 1e-6, "{name}: {error}");
        }
    }
}

#[test]
fn dora_without_change_is_the_base() {
    // Adapters that cancel what the base has: the parts of the norm cancel, too.
    for (name, device) in cpu_devices() {
        let x = Tensor::<2>::random([3, 6], Distribution::Default, &device);
        let model = Net::new(&device)
            .attach(
                "mine",
                &LoraConfig::new(5)
                    .with_targets(["peft"])
                    .with_use_dora(true),
            )
            .unwrap();
        let weight = model.peft.weight.base();
        let model = model
            .edit_adapter::<LoraLinear>("mine", |_, state| {
                // s·A B is all of the base but a thousandth.
                let identity = Tensor::<2>::eye(5, &device);
                let scale = state.scale;
                let a = weight.clone() * (-0.999 / scale);
                state.lora_a = Param::from_tensor(a);
                state.lora_b = Param::from_tensor(identity);
            })
            .unwrap();
        let error = farthest(
            model.forward(x.clone()),
            Net::forward(&model.unload().unwrap(), x),
        );
        assert!(
            error <= 1e-3,
            "{name}: {error}, as its direction is the base's"
        );
    }
}

#[test]
fn a_field_called_peft_is_packed_as_any_other() {
    for (name, device) in cpu_devices() {
        let x = Tensor::<2>::random([3, 6], Distribution::Default, &device);
        let base = Net::new(&device);
        for model in [base.clone(), base.attach("mine", &lora()).unwrap()] {
            let packed = model.pack_weights(&AsTheyAre).unwrap();
            assert_eq!(packed.quantized_weights().len(), 2, "{name}");
            for layer in [&packed.peft, &packed.other] {
                // What stands in for the matrix.
                let largest: f32 = layer.weight.base().abs().max().into_scalar();
                assert!(largest == 0.0, "{name}: the dense matrix is there still");
            }
            let error = farthest(packed.forward(x.clone()), model.forward(x.clone()));
            assert!(error <= 1e-6, "{name}: {error}");
        }
    }
}

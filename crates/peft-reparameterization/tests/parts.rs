//! Parts of a model with shared parameters, changed by themselves.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor};
use peft_core::PeftModule as _;
use peft_core::device::cpu_devices;
use peft_core::method::{Method, MethodConfig as _};
use peft_core::nn::AdaptedForward as _;
use peft_reparameterization::{VbLoraConfig, VeraConfig};

#[derive(Module, Debug)]
struct Net {
    layers: Vec<Linear>,
}

impl Net {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let layers = self.layers.iter();
        layers.fold(x, |x, layer| layer.adapted(x).tanh())
    }
}

fn methods() -> [Box<dyn Method>; 2] {
    [
        VeraConfig::new(4).boxed(),
        VbLoraConfig::new(2, 8, 16).boxed(),
    ]
}

fn net(device: &Device, method: &dyn Method) -> Net {
    let layer = || LinearConfig::new(64, 64).init(device);
    let base = Net {
        layers: (0..3).map(|_| layer()).collect(),
    };
    base.attach("mine", method).unwrap()
}

fn step(model: Net, device: &Device) -> Net {
    let x = Tensor::<2>::random([4, 64], Distribution::Default, device);
    let loss = model.forward(x).square().mean();
    let gradients = GradientsParams::from_grads(loss.backward(), &model);
    let mut optimizer = SgdConfig::new().init();
    optimizer.step(1.0, model, gradients)
}

/// Adds one to every number.
struct More;

impl ModuleMapper for More {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trained = param.is_require_grad();
        param.map(|value| (value.detach() + 1.0).detach().set_require_grad(trained))
    }
}

#[test]
fn a_part_is_changed_by_itself() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        for method in methods() {
            let title = method.info().title;
            let model = net(&device, method.as_ref());
            let x = Tensor::<2>::random([4, 64], Distribution::Default, &device);
            for layer in &model.layers {
                let part = layer.clone().no_grad();
                let (ours, expected) = (part.adapted(x.clone()), layer.adapted(x.clone()));
                assert_eq!(ours.into_data(), expected.into_data(), "{title} on {name}");
            }
            // A part of the model as it was before a step is none to follow for one of the model after it.
            let first = model.layers[0].clone();
            let trained = step(model, &device);
            let _more = first.map(&mut More);
            let part = trained.layers[1].clone().no_grad();
            let (ours, expected) = (part.adapted(x.clone()), trained.layers[1].adapted(x));
            assert_eq!(ours.into_data(), expected.into_data(), "{title} on {name}");
        }
    }
}

#[test]
fn a_part_that_is_put_back_follows_the_others_again() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        for method in methods() {
            let title = method.info().title;
            for put_back in 0..3 {
                let mut model = net(&device, method.as_ref());
                let part = model.layers[put_back].clone();
                model.layers[put_back] = part.map(&mut Same);
                for _ in 0..2 {
                    model = step(model, &device);
                }
                // What a file holds is what the model computes with.
                let dir = tempfile::tempdir().unwrap();
                model.save_adapter("mine", dir.path()).unwrap();
                let loaded = model
                    .unload()
                    .unwrap()
                    .load_adapter("mine", dir.path(), peft_reparameterization::METHODS)
                    .unwrap();
                let x = Tensor::<2>::random([4, 64], Distribution::Default, &device);
                let error: f32 = (model.forward(x.clone()) - loaded.forward(x))
                    .abs()
                    .max()
                    .into_scalar();
                assert!(
                    error <= 1e-5,
                    "{title} on {name}, layer {put_back}: {error}"
                );
            }
        }
    }
}

/// Changes nothing.
struct Same;

impl ModuleMapper for Same {}

//! What is kept between forward passes besides the weights of layers: keys and values of prefixes, and the table as a
//! tied head sees it.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use peft::core::method::Method;
use peft::core::{PeftModule as _, device::cpu_devices};
use peft::selective::TrainableTokensConfig;
use peft::soft_prompt::{AdapterHubPrefixConfig, PrefixTuningConfig};
use peft_conformance::{Fixture, TinyTransformer};

/// Changes the base, and adapters, as an optimizer does.
struct Scale;

impl ModuleMapper for Scale {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| (value * 0.9).detach())
    }
}

type Change = fn(TinyTransformer) -> TinyTransformer;

fn methods() -> Vec<(&'static str, Box<dyn Method>)> {
    let network = PrefixTuningConfig::new(4).with_prefix_projection(true);
    let gated = AdapterHubPrefixConfig::new()
        .with_prefix_length(3)
        .with_bottleneck_size(7)
        .with_use_gating(true);
    vec![
        ("a network", Box::new(network)),
        ("AdapterHub's network with gates", Box::new(gated)),
        (
            "rows of a table that is a head",
            Box::new(TrainableTokensConfig::new([3, 50])),
        ),
    ]
}

fn bits(data: &TensorData) -> Vec<u32> {
    data.iter::<f32>().map(f32::to_bits).collect()
}

#[test]
fn a_model_that_kept_something_computes_what_a_fresh_one_does() {
    for (backend, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        for (name, method) in methods() {
            let what = format!("{backend}, {name}");
            let method = method.as_ref();
            let fresh = || {
                device.seed(5);
                fixture.trained("a", method).unwrap().valid()
            };
            let outputs = |model: &TinyTransformer| {
                let (ids, padding, _) = fixture.batch(&device);
                let outputs = model.forward(ids, Some(padding)).into_data();
                assert!(outputs.iter::<f32>().all(f32::is_finite), "{what}");
                bits(&outputs)
            };

            let model = fresh();
            assert_eq!(model.summary().kept_bytes, 0, "{what}: before any pass");
            let first = outputs(&model);
            assert!(model.summary().kept_bytes > 0, "{what}: nothing is kept");
            assert_eq!(outputs(&model), first, "{what}: the second pass");

            let changes: [(&str, Change); 4] = [
                ("other values", |model| model.map(&mut Scale)),
                ("trained", |model| model.train().map(&mut Scale).valid()),
                ("none", |model| model.disable_adapters().unwrap()),
                ("a second one", |model| {
                    let second = PrefixTuningConfig::new(2);
                    let model = model.attach("b", &second).unwrap();
                    model.activate(&["a", "b"]).unwrap()
                }),
            ];
            for (change, changed) in changes {
                let found = outputs(&changed(model.clone()));
                assert_eq!(found, outputs(&changed(fresh())), "{what}, {change}");
                assert_ne!(found, first, "{what}, {change}");
            }
            assert_eq!(
                outputs(&model),
                first,
                "{what}: after changes of its clones"
            );

            // While it is trained, nothing is kept.
            let training = model.train();
            let (ids, padding, _) = fixture.batch(&device.clone().autodiff());
            training.forward(ids, Some(padding));
            assert_eq!(training.summary().kept_bytes, 0, "{what}: in training");
        }
    }
}

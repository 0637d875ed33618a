//! Layer groups: discriminative rates and gradual unfreezing, on full and partial fine-tuning, and on biases.

use std::collections::BTreeMap;

use burn::lr_scheduler::constant::ConstantLr;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Gradients, Tensor};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::device::cpu_devices;
use peft_core::{LayerGroups, PeftModule};
use peft_selective::{BitFitConfig, FullConfig, PartialConfig};

/// Values and gradients of all parameters, by field path.
#[derive(Default)]
struct Read<'a> {
    gradients: Option<&'a Gradients>,
    path: Vec<String>,
    values: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Read<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = match self.gradients {
            None => Some(param.base().into_data()),
            Some(gradients) => param.base().grad(gradients).map(Tensor::into_data),
        };
        if let Some(value) = value {
            let values = value.iter::<f32>().collect();
            self.values.insert(self.path.join("."), values);
        }
    }
}

fn values(model: &TinyTransformer) -> BTreeMap<String, Vec<f32>> {
    let mut read = Read::default();
    model.visit(&mut read);
    read.values
}

fn gradients(fixture: &Fixture, model: &TinyTransformer) -> BTreeMap<String, Vec<f32>> {
    let gradients = fixture.loss(model).backward();
    let mut read = Read {
        gradients: Some(&gradients),
        ..Read::default()
    };
    model.visit(&mut read);
    read.values
}

/// How many groups are above that of a parameter, by its path.
fn depth(path: &str) -> usize {
    match path {
        path if path.starts_with("classifier") => 0,
        path if path.starts_with("encoder.layer.1") => 1,
        path if path.starts_with("encoder.layer.0") => 2,
        _ => 3,
    }
}

#[test]
fn groups_are_the_layers_from_the_embeddings_to_the_head() {
    let fixture = Fixture::new(&cpu_devices()[0].1);
    let named = |model: &TinyTransformer| {
        let groups = LayerGroups::new(model);
        let of = groups.groups().iter();
        let elements: usize = of.clone().map(|group| group.elements).sum();
        assert_eq!(elements, model.counts().trainable);
        of.map(|group| group.name.clone()).collect::<Vec<_>>()
    };
    let blocks = ["encoder.layer.0", "encoder.layer.1"];
    let full = fixture.base.attach("a", &FullConfig::new()).unwrap();
    let all = ["embeddings", blocks[0], blocks[1], "classifier"];
    assert_eq!(named(&full), all);
    let biases = BitFitConfig::new().with_modules_to_save(["classifier"]);
    let biases = fixture.base.attach("biases", &biases).unwrap();
    assert_eq!(named(&biases), all);
    let last = fixture.base.attach("a", &PartialConfig::last(1)).unwrap();
    assert_eq!(named(&last), [blocks[1]]);
    // What is not active has no part.
    let other = biases.attach("a", &PartialConfig::last(1)).unwrap();
    assert_eq!(named(&other), [blocks[1]]);
    let text = LayerGroups::new(&full).to_string();
    assert!(
        text.starts_with("classifier") && text.contains("66 trained"),
        "{text}"
    );
}

#[test]
fn only_the_upper_groups_have_gradients_and_those_are_the_same() {
    for (name, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        let full = fixture.base.attach("a", &FullConfig::new()).unwrap();
        let with_head = BitFitConfig::new().with_modules_to_save(["classifier"]);
        let biases = fixture.base.attach("a", &with_head).unwrap();
        for model in [full, biases] {
            let groups = LayerGroups::new(&model);
            let all = gradients(&fixture, &model);
            for count in 0..=5 {
                let part = groups.unfrozen(&model, count);
                if count == 0 {
                    assert!(!fixture.loss(&part).is_require_grad());
                    continue;
                }
                let found = gradients(&fixture, &part);
                let expected = all.iter().filter(|(path, _)| depth(path) < count);
                let expected: BTreeMap<_, _> = expected
                    .map(|(path, value)| (path.clone(), value.clone()))
                    .collect();
                assert_eq!(found, expected, "{name}, {count}");
            }
            // The model itself is as it was.
            assert_eq!(gradients(&fixture, &model), all, "{name}");
        }
    }
}

#[test]
fn a_step_changes_the_unfrozen_layers_at_the_rates_of_their_depth() {
    for (name, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        let model = fixture.base.attach("a", &FullConfig::new()).unwrap();
        let groups = LayerGroups::new(&model);
        let (rate, divisor) = (0.5, 2.6);
        let mut rates = ModuleLrScheduler::new(ConstantLr::from(rate));
        for (group, factor) in groups.rates(divisor).unwrap() {
            rates = rates.with_group(group, ConstantLr::from(rate * factor));
        }
        for count in [1, 3, 4] {
            let part = groups.unfrozen(&model, count);
            let slopes = gradients(&fixture, &part);
            let steps = GradientsParams::from_grads(fixture.loss(&part).backward(), &part);
            let mut optimizer = SgdConfig::new().init();
            let after = values(&optimizer.step(rates.step(), model.clone(), steps));
            for (path, before) in values(&model) {
                let depth = depth(&path);
                let factor = rate / divisor.powi(i32::try_from(depth).unwrap());
                for (at, (old, new)) in before.iter().zip(&after[&path]).enumerate() {
                    let slope = slopes.get(&path).map_or(0.0, |slopes| slopes[at]);
                    let expected = old - factor as f32 * slope;
                    assert!(
                        (new - expected).abs() < 1e-6,
                        "{name}, {path}: {new}, {expected}"
                    );
                    assert!(
                        depth < count || new.to_bits() == old.to_bits(),
                        "{name}, {path}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_divisor_that_is_no_rate_is_refused() {
    let fixture = Fixture::new(&cpu_devices()[0].1);
    let groups = LayerGroups::new(&fixture.base);
    for divisor in [0.0, -2.6, f64::NAN, f64::INFINITY] {
        let error = groups.rates(divisor).unwrap_err().to_string();
        assert!(
            error.contains("divisor") && error.contains("above 0"),
            "{error}"
        );
    }
}

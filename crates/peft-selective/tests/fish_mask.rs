//! `FishMask`: which elements it chooses, that it changes no others, and how large its file is.

use std::collections::BTreeMap;
use std::fs;

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::calibration::{Calibrate as _, CalibrationConfig};
use peft_core::method::{Init, LayerKind, LayoutParam, SparseDelta};
use peft_core::nn::AdaptedForward as _;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule as _};
use peft_selective::{FISH_MASK, FishMaskConfig, FullConfig, drawn_labels};

fn attached(fixture: &Fixture, config: &FishMaskConfig) -> TinyTransformer {
    let loss = |model: &TinyTransformer, ()| fixture.loss(model);
    fixture.base.attach_on("a", config, [()], loss).unwrap()
}

/// Gradients of all parameters, by field path.
struct Squares<'a> {
    gradients: &'a Gradients,
    path: Vec<String>,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Squares<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(self.gradients);
        let squares = gradient.map(|gradient| {
            let data = gradient.square().into_data();
            data.iter::<f32>().collect::<Vec<f32>>()
        });
        let none = vec![0.0; param.shape().num_elements()];
        self.found
            .insert(self.path.join("."), squares.unwrap_or(none));
    }
}

/// Values of a parameter, as Burn has it.
fn values(param: &LayoutParam) -> Vec<f32> {
    let data: TensorData = match param.shape().len() {
        1 => param.value::<1>().into_data(),
        2 => param.value::<2>().into_data(),
        4 => param.value::<4>().into_data(),
        rank => panic!("a parameter of rank {rank}"),
    };
    data.iter::<f32>().collect()
}

/// The chosen places of each parameter as Burn has it, by name.
fn chosen(model: &TinyTransformer, base: &TinyTransformer) -> BTreeMap<String, Vec<usize>> {
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path()).unwrap();
    let tensors = model.adapter_tensors("a").unwrap();
    let layout = base.layout();
    let mut found = BTreeMap::new();
    for param in layout.params.iter().filter(|param| !param.is_tied()) {
        let key = format!("base_model.model.{}.sparse_indices", param.name);
        let Some(indices) = tensors.get(&key) else {
            continue;
        };
        let linear = layout.layer_of(param).kind == LayerKind::Linear;
        let shape = param.shape();
        let of_burn = |place: i64| {
            let place = place as usize;
            if linear && shape.len() == 2 {
                place % shape[0] * shape[1] + place / shape[0]
            } else {
                place
            }
        };
        let mut places: Vec<usize> = indices.iter::<i64>().map(of_burn).collect();
        places.sort_unstable();
        found.insert(param.name.clone(), places);
    }
    found
}

#[test]
fn the_largest_squared_gradients_of_all_parameters_are_chosen() {
    for (name, device) in peft_core::device::cpu_devices() {
        let fixture = Fixture::new(&device);
        let config = FishMaskConfig::new().with_keep_ratio(0.02);
        let model = attached(&fixture, &config);
        // The same gradients by another way: the model as it is, every parameter trained.
        let all = fixture.base.attach("all", &FullConfig::new()).unwrap();
        let gradients = fixture.loss(&all).backward();
        let mut squares = Squares {
            gradients: &gradients,
            path: Vec::new(),
            found: BTreeMap::new(),
        };
        all.visit(&mut squares);
        let layout = fixture.base.layout();
        let params = layout.params.iter();
        let params = params.filter(|param| !param.is_tied() && !layout.layer_of(param).head);
        let scores: Vec<(&str, Vec<f32>)> = params
            .map(|param| (param.name.as_str(), squares.found[&param.path].clone()))
            .collect();
        let mut sorted: Vec<f32> = scores.iter().flat_map(|(_, all)| all.clone()).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let count = (sorted.len() as f64 * 0.02) as usize;
        assert_eq!(model.counts().adapter_trainable(), count, "{name}");
        assert_eq!(model.counts().changed, count, "{name}");
        assert!(sorted[count - 1] > sorted[count], "{name}: no tie decides");
        let mut expected = BTreeMap::new();
        for (name, scores) in scores {
            let places = scores.iter().enumerate();
            let places = places.filter(|(_, score)| **score >= sorted[count - 1]);
            let places: Vec<usize> = places.map(|(place, _)| place).collect();
            if !places.is_empty() {
                expected.insert(name.to_string(), places);
            }
        }
        assert!(expected.len() > 5, "{name}: of several parameters");
        assert_eq!(chosen(&model, &fixture.base), expected, "{name}");
    }
}

#[test]
fn what_is_outside_of_the_mask_stays_bit_equal_and_the_file_applies_to_a_fresh_base() {
    for (name, device) in peft_core::device::cpu_devices() {
        let fixture = Fixture::new(&device);
        let model = attached(&fixture, &FishMaskConfig::new().with_keep_ratio(0.01));
        let count = model.counts().adapter_trainable();
        let gradients = GradientsParams::from_grads(fixture.loss(&model).backward(), &model);
        assert_eq!(elements(&model, &gradients), count, "{name}");
        let (model, losses) = fixture.train(model, 20, 1e-2);
        assert!(losses[19] < losses[0], "{name}: {losses:?}");
        let masks = chosen(&model, &fixture.base);
        let merged = model.merge_and_unload().unwrap();
        let (before, after) = (fixture.base.layout(), merged.layout());
        let mut changed = 0;
        for param in before.params.iter().filter(|param| !param.is_tied()) {
            let is_same = |other: &&LayoutParam| other.name == param.name && !other.is_tied();
            let trained = after.params.iter().find(is_same).unwrap();
            let pairs = values(param).into_iter().zip(values(trained));
            for (place, (old, new)) in pairs.enumerate() {
                let mask = masks.get(&param.name);
                let inside = mask.is_some_and(|mask| mask.binary_search(&place).is_ok());
                let same = old.to_bits() == new.to_bits();
                assert!(inside || same, "{name}: {} at {place}", param.name);
                changed += usize::from(!same);
            }
        }
        assert!(changed * 10 > count * 9 && changed <= count, "{name}");

        let dir = tempfile::tempdir().unwrap();
        model.save_adapter("a", dir.path()).unwrap();
        let file = fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(file.len() - 8 - header, count * (4 + 4), "{name}");
        let fresh = Fixture::new(&device).base;
        let loaded = fresh.load_adapter("b", dir.path(), &[&FISH_MASK]).unwrap();
        assert_eq!(
            fixture.outputs(&loaded).unwrap(),
            fixture.outputs(&model).unwrap(),
            "{name}"
        );
        let of_both = [loaded.merge_and_unload().unwrap(), merged].map(|model| {
            let params = model.layout().params;
            let bits = params.iter().filter(|param| !param.is_tied()).map(values);
            bits.map(|values| {
                values
                    .iter()
                    .map(|value| value.to_bits())
                    .collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
        });
        assert_eq!(of_both[0], of_both[1], "{name}");
    }
}

/// How many numbers have a gradient: an optimizer keeps its moments of these.
fn elements(model: &TinyTransformer, gradients: &GradientsParams) -> usize {
    struct Count<'a>(&'a GradientsParams, usize);
    impl ModuleVisitor for Count<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = self.0.get::<D>(param.id);
            self.1 += gradient.map_or(0, |gradient| gradient.shape().num_elements());
        }
    }
    let mut count = Count(gradients, 0);
    model.visit(&mut count);
    count.1
}

#[test]
fn without_statistics_it_is_refused_and_so_is_a_share_of_nothing() {
    let fixture = Fixture::new(&peft_core::device::cpu_devices().remove(0).1);
    let error = fixture
        .base
        .attach("a", &FishMaskConfig::new())
        .unwrap_err();
    assert!(matches!(error, Error::Calibration { .. }), "{error}");
    assert!(error.to_string().contains("attach_on"), "{error}");
    let none = FishMaskConfig::new().with_keep_ratio(1e-9);
    let loss = |model: &TinyTransformer, ()| fixture.loss(model);
    let error = fixture.base.attach_on("a", &none, [()], loss).unwrap_err();
    let words = ["keep_ratio", "at least one"];
    assert!(
        words.iter().all(|word| error.to_string().contains(word)),
        "{error}"
    );
}

#[derive(Module, Debug)]
struct Net {
    layer: Linear,
}

/// Of a softmax layer the Fisher information is known: `E x² p (1 − p)`, where the empirical one has `(1[y] − p)²` in the
/// place of `p (1 − p)`.
#[test]
fn drawn_labels_give_the_fisher_information_itself() {
    for (name, device) in peft_core::device::cpu_devices() {
        let device: Device = device.autodiff();
        let mut layer: Linear = LinearConfig::new(2, 3).with_bias(false).init(&device);
        let weight = [[0.4_f32, -0.3, 0.1], [-0.2, 0.5, 0.2]];
        layer.weight = Param::from_tensor(Tensor::from_data(weight, &device));
        let net = Net { layer };
        let wanted = CalibrationConfig {
            squared_gradients: true,
            ..CalibrationConfig::new(["layer"])
        };
        let mut calibrator = net.calibrate(&wanted).unwrap();
        let mut init = Init::new(3);
        let rows = [[1.0_f32, -1.0], [0.5, 1.0]];
        let mut expected = [[0.0_f64; 3]; 2];
        let draws = 1500;
        for row in rows {
            let logits: Vec<f64> = (0..3)
                .map(|class| {
                    let terms = row.iter().zip(weight).map(|(x, w)| x * w[class]);
                    f64::from(terms.sum::<f32>())
                })
                .collect();
            let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
            for (expected, x) in expected.iter_mut().zip(row) {
                for (expected, logit) in expected.iter_mut().zip(&logits) {
                    let share = logit.exp() / total;
                    *expected += f64::from(x * x) * share * (1.0 - share) / 2.0;
                }
            }
            for _ in 0..draws {
                let input = Tensor::<2>::from_data([row], &device);
                let logits = calibrator.model().layer.adapted(input);
                let label = drawn_labels(&logits, &mut init)[0];
                let likelihood = log_softmax(logits, 1).slice([0..1, label..label + 1]);
                calibrator
                    .record_gradients(&likelihood.neg().backward())
                    .unwrap();
            }
        }
        let calibration = calibrator.finish().unwrap();
        let found = calibration.gradients("layer.weight").unwrap();
        let found = found.mean_square::<2>().unwrap().into_data();
        for (found, expected) in found.iter::<f64>().zip(expected.as_flattened()) {
            let off = (found - expected).abs() / expected;
            assert!(off < 0.1, "{name}: {found} for {expected}");
        }
    }
}

#[test]
fn the_state_is_the_one_of_all_sparse_methods() {
    let fixture = Fixture::new(&peft_core::device::cpu_devices().remove(0).1);
    let model = attached(&fixture, &FishMaskConfig::new().with_keep_ratio(0.01));
    let states = model.adapter_states::<SparseDelta>("a").unwrap();
    let trained: usize = states.iter().map(|(_, state)| state.values.dims()[0]).sum();
    assert_eq!(trained, model.counts().adapter_trainable());
}

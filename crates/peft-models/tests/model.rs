//! How the model behaves: names, seeds, gradients, dropout.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Device, Int, Tensor};
use peft_core::device::cpu_devices;
use peft_models::{Bert, BertClassifier, BertConfig, Pooling};
use peft_testing::farthest;

/// Seeds are the backend's and not the thread's: tests that draw do so one at a time.
static DRAWING: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn ids(device: &Device) -> Tensor<2, Int> {
    Tensor::from_data([[5, 6, 7, 8], [9, 10, 0, 0]], device)
}

fn padding(device: &Device) -> Tensor<2, Bool> {
    Tensor::from_data([[false; 4], [false, false, true, true]], device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Parameters without a gradient, by path.
struct Idle<'a> {
    path: Vec<String>,
    gradients: &'a burn::tensor::Gradients,
    found: Vec<String>,
}

impl ModuleVisitor for Idle<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(self.gradients);
        if gradient.is_none_or(|gradient| gradient.abs().max().into_scalar::<f32>() == 0.0) {
            self.found.push(self.path.join("."));
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    let _alone = DRAWING.lock();
    for (name, device) in cpu_devices() {
        for device in [
            device.clone().autodiff(),
            device.autodiff().gradient_checkpointing(),
        ] {
            for pooling in [Pooling::Cls, Pooling::Mean] {
                let bert = Bert::tiny(&device);
                let model = BertClassifier::new_head(bert, 3, pooling, 0.0, &device).unwrap();
                let logits = model.forward(ids(&device), Some(padding(&device)));
                assert_eq!(logits.dims(), [2, 3]);
                let gradients = logits.powi_scalar(2).mean().backward();
                let mut idle = Idle {
                    path: Vec::new(),
                    gradients: &gradients,
                    found: Vec::new(),
                };
                model.visit(&mut idle);
                let expected: &[&str] = if pooling == Pooling::Mean {
                    &["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
                } else {
                    &[]
                };
                assert_eq!(idle.found, expected, "{name}");
            }
        }
    }
}

#[test]
fn gradient_checkpointing_changes_no_gradient() {
    for (name, device) in cpu_devices() {
        let gradient = |device: &Device| {
            let bert = Bert::tiny(device);
            let output = bert.forward(ids(device), Some(padding(device)));
            let gradients = output.hidden.powi_scalar(2).mean().backward();
            let weight = &bert.encoder.layer[0].attention.self_attention.query.weight;
            values(weight.val().grad(&gradients).unwrap())
        };
        let plain = gradient(&device.clone().autodiff());
        let checkpointed = gradient(&device.autodiff().gradient_checkpointing());
        let error = farthest(plain, checkpointed);
        assert!(error < 1e-6, "{name}: {error}");
    }
}

#[test]
fn the_tiny_model_is_the_same_everywhere() {
    let mut seen: Option<Vec<f32>> = None;
    for (name, device) in cpu_devices() {
        for seed in [1, 2] {
            device.seed(seed);
            let output = Bert::tiny(&device).forward(ids(&device), Some(padding(&device)));
            assert_eq!(
                (output.hidden.dims(), output.virtual_tokens),
                ([2, 4, 32], 0)
            );
            let found = values(output.hidden);
            let seen = seen.get_or_insert_with(|| found.clone());
            let error = farthest(found, seen.iter().copied());
            assert!(error < 1e-5, "{name}: {error}");
        }
    }
}

#[test]
fn a_seed_decides_fresh_weights_and_heads() {
    let _alone = DRAWING.lock();
    for (name, device) in cpu_devices() {
        let draw = |seed| {
            device.seed(seed);
            let bert = BertConfig::tiny().init(&device);
            let model = BertClassifier::new_head(bert, 2, Pooling::Mean, 0.1, &device).unwrap();
            let _noise = values(Tensor::<1>::random(
                [8],
                burn::tensor::Distribution::Default,
                &device,
            ));
            values(model.forward(ids(&device), Some(padding(&device))))
        };
        assert_eq!(draw(7), draw(7), "{name}");
        assert_ne!(draw(7), draw(8), "{name}");
    }
}

#[test]
fn dropout_acts_in_training_only() {
    let _alone = DRAWING.lock();
    for (name, device) in cpu_devices() {
        let mut config = BertConfig::tiny();
        config.hidden_dropout_prob = 0.2;
        config.attention_probs_dropout_prob = 0.2;
        let training = device.clone().autodiff();
        let bert = config.init(&training);
        let run = |bert: &Bert, device: &Device| {
            values(bert.forward(ids(device), Some(padding(device))).hidden)
        };
        assert_ne!(run(&bert, &training), run(&bert, &training), "{name}");
        let valid = bert.valid();
        assert_eq!(run(&valid, &device), run(&valid, &device), "{name}");
    }
}

#[test]
fn rows_of_nothing_but_padding_give_no_nan() {
    for (name, device) in cpu_devices() {
        for device in [device.clone(), device.autodiff()] {
            let bert = Bert::tiny(&device);
            let padding = Some(Tensor::from_data([[false; 4], [true; 4]], &device));
            let output = bert.forward(ids(&device), padding.clone());
            let pooled = values(output.mean(padding));
            assert!(pooled.iter().all(|value| value.is_finite()), "{name}");
            assert!(pooled[32..].iter().all(|value| *value == 0.0), "{name}");
        }
    }
}

#[test]
#[should_panic(
    expected = "41 positions (0 of them virtual tokens), but the model has embeddings for 40"
)]
fn too_long_a_row_is_refused() {
    let device = cpu_devices().remove(0).1;
    let _hidden = Bert::tiny(&device).forward(Tensor::zeros([1, 41], &device), None);
}

#[test]
fn a_model_can_be_printed() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let printed = format!("{}", Bert::tiny(device));
    assert!(
        printed.contains("word_embeddings") && printed.contains("feed-forward output"),
        "{printed}"
    );
}

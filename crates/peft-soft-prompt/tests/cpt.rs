//! CPT: what is trained, how far it goes, and its loss.

use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_conformance::TinyTransformer;
use peft_core::device::cpu_devices;
use peft_core::method::PromptAdapter as _;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_soft_prompt::{
    ContextForm, ContextPrompt, CptConfig, METHODS, MovedContext, WeightedLoss,
};

/// Template, input, template, label, and a token that is none of them.
const TYPES: [u32; 5] = [1, 2, 3, 4, 0];
const CONTEXT: [u32; 5] = [5, 17, 60, 8, 30];

fn config() -> CptConfig {
    CptConfig::new(CONTEXT)
        .with_cpt_tokens_type_mask(TYPES)
        .with_opt_projection_epsilon(0.8)
        .with_opt_projection_format_epsilon(0.4)
}

fn state(model: &TinyTransformer) -> ContextPrompt {
    let mut states = model.adapter_states::<ContextPrompt>("p").unwrap();
    assert_eq!(states.len(), 1);
    states.remove(0).1
}

fn moved(model: &TinyTransformer) -> MovedContext {
    match state(model).form {
        ContextForm::Moved(moved) => moved,
        ContextForm::Prompt(_) => panic!("a new adapter has a change"),
    }
}

fn rows(tensor: Tensor<2>) -> Vec<Vec<f64>> {
    let width = tensor.dims()[1];
    let values: Vec<f64> = tensor.into_data().iter().collect();
    values.chunks(width).map(<[f64]>::to_vec).collect()
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Whose gradient is the same everywhere: cubes.
fn loss(model: &TinyTransformer, device: &Device) -> Tensor<1> {
    let ids = Tensor::<2, Int>::from_data(TensorData::from([[3_i64, 4, 5], [6, 7, 8]]), device);
    model.hidden(ids, None).powi_scalar(3).mean()
}

#[test]
fn steps_stay_in_the_balls_and_labels_stay_where_they_are() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let base = TinyTransformer::new(&device);
        let mut model = base.attach("p", &config()).unwrap();
        let table = rows(base.embeddings.word_embeddings.weight.val());
        let start = rows(state(&model).prompt());
        for (row, token) in start.iter().zip(CONTEXT) {
            assert_eq!(*row, table[token as usize], "{name}");
        }
        // Of width 32: sqrt(32 / 2048) is 1/8.
        let radii = [0.05, 0.1, 0.05, 0.0, 0.0];
        let mut optimizer = SgdConfig::new().init();
        let mut hooks = model.training_hooks(4).unwrap();
        for step in 0..4 {
            let before = rows(moved(&model).delta.val());
            let gradients = loss(&model, &device).backward();
            let delta = moved(&model).delta;
            let gradient = rows(Tensor::from_inner(delta.grad(&gradients).unwrap()));
            let rate = if step == 0 { 1e-3 } else { 1e4 };
            let gradients = GradientsParams::from_grads(gradients, &model);
            model = hooks
                .after_step(optimizer.step(rate, model, gradients))
                .unwrap();
            let after = rows(moved(&model).delta.val());
            for token in 0..TYPES.len() {
                let trained = radii[token] > 0.0;
                assert_eq!(norm(&gradient[token]) > 0.0, trained, "{name}: {token}");
                // Projected descent, computed by itself.
                let step: Vec<f64> = before[token]
                    .iter()
                    .zip(&gradient[token])
                    .map(|(value, gradient)| value - rate * gradient)
                    .collect();
                let shortened = (radii[token] / norm(&step).max(1e-30)).min(1.0);
                for (found, step) in after[token].iter().zip(&step) {
                    let expected = if trained { step * shortened } else { 0.0 };
                    assert!((found - expected).abs() < 1e-5, "{name}: {token}");
                }
            }
        }
        let norms: Vec<f64> = rows(moved(&model).delta.val())
            .iter()
            .map(|row| norm(row))
            .collect();
        for (norm, radius) in norms.iter().zip(radii) {
            assert!((norm - radius).abs() < 1e-6, "{name}: {norms:?}, {radii:?}");
        }
        // The base's embeddings of the context are as they were.
        assert_eq!(rows(moved(&model).embeddings.val()), start, "{name}");
    }
}

/// In a loop that calls no hooks, what is used is within the balls all the same.
#[test]
fn what_is_outside_is_used_from_the_surface() {
    for (name, device) in cpu_devices() {
        let base = TinyTransformer::new(&device);
        let model = base.attach("p", &config()).unwrap();
        let model = model
            .edit_adapter::<ContextPrompt>("p", |_, state| {
                if let ContextForm::Moved(moved) = &mut state.form {
                    moved.delta = moved.delta.clone().map(|delta| delta.ones_like() * 3.0);
                }
            })
            .unwrap();
        let (prompt, start) = (
            rows(state(&model).prompt()),
            rows(moved(&model).embeddings.val()),
        );
        let radii = [0.05, 0.1, 0.05, 0.0, 0.0];
        for ((prompt, start), radius) in prompt.iter().zip(&start).zip(radii) {
            let change: Vec<f64> = prompt.iter().zip(start).map(|(a, b)| a - b).collect();
            assert!((norm(&change) - radius).abs() < 1e-6, "{name}");
        }
    }
}

#[test]
fn a_file_holds_the_prompt_whose_labels_stay_fixed() {
    let dir = tempfile::tempdir().unwrap();
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let base = TinyTransformer::new(&device);
        let model = base.attach("p", &config()).unwrap();
        model.save_adapter("p", dir.path()).unwrap();
        let json = peft_core::checkpoint::read_config(dir.path()).unwrap();
        assert_eq!(json["task_type"], "CAUSAL_LM");
        assert_eq!(json["num_virtual_tokens"], 5);
        let loaded = base.load_adapter("p", dir.path(), METHODS).unwrap();
        assert_eq!(
            rows(state(&loaded).prompt()),
            rows(state(&model).prompt()),
            "{name}"
        );
        let ContextForm::Prompt(embeddings) = state(&loaded).form else {
            panic!("{name}: a file has no change");
        };
        let gradients = loss(&loaded, &device).backward();
        let gradient = rows(Tensor::from_inner(embeddings.grad(&gradients).unwrap()));
        for (row, number) in gradient.iter().zip(TYPES) {
            assert_eq!(norm(row) > 0.0, number % 4 != 0, "{name}");
        }
        let tensors = loaded.adapter_tensors("p").unwrap();
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["prompt_embeddings"]);
    }
}

const TEXT: [i64; 8] = [1, 2, 3, 4, 6, 5, -100, -100];
const TEXT_TYPES: [u32; 8] = [1, 2, 3, 4, 1, 4, 4, 0];

/// Two examples, and a text of two rows; the logits are 2·sin(0.37·n).
fn losses(config: &CptConfig, types: Option<&[u32]>, device: &Device) -> f64 {
    let positions = config.cpt_token_ids.len() + 4;
    let values = (0..2 * positions * 7).map(|n| 2.0 * (0.37 * f64::from(n as u32)).sin() as f32);
    let data = TensorData::new(values.collect::<Vec<f32>>(), [2, positions, 7]);
    let logits = Tensor::<3>::from_data(data, device);
    let loss = config.loss(logits, &TEXT, types).unwrap();
    f64::from(loss.into_scalar::<f32>())
}

/// Values that `CPTEmbedding.calculate_loss` of Hugging Face PEFT 0.21.2 gives.
#[test]
fn the_loss_is_upstreams() {
    for (name, device) in cpu_devices() {
        let config = |kind, factor| {
            CptConfig::new([3, 5, 1, 6, 2, 4, 0, 5])
                .with_cpt_tokens_type_mask([1, 2, 3, 4, 5, 6, 7, 8])
                .with_opt_weighted_loss_type(kind)
                .with_opt_loss_decay_factor(factor)
        };
        for (config, typed, untyped) in [
            (config(WeightedLoss::None, 0.5), 2.312_610_4, 2.309_841_6),
            (config(WeightedLoss::Decay, 0.5), 1.555_314_1, 1.855_464_2),
            (config(WeightedLoss::Decay, 0.9), 2.150_678_9, 2.212_683_2),
        ] {
            for (types, expected) in [(Some(TEXT_TYPES.as_slice()), typed), (None, untyped)] {
                let found = losses(&config, types, &device);
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{name}: {found}, {expected}"
                );
            }
        }
    }
}

/// Where upstream's loss is no number: the numbers of its context end with no label.
#[test]
fn labels_of_the_text_are_labels_whatever_the_context_ends_with() {
    for (name, device) in cpu_devices() {
        let plain = CptConfig::new([3, 5, 1]);
        let found = losses(&plain, None, &device);
        // The mean over the six targets of the text, computed by itself.
        let logit = |row: usize, position: usize, token: usize| {
            2.0 * (0.37 * f64::from((((row * 7) + position) * 7 + token) as u32)).sin()
        };
        let mut sum = 0.0;
        for (at, target) in TEXT.iter().enumerate().filter(|(_, target)| **target >= 0) {
            let (row, position) = (at / 4, 3 + at % 4 - 1);
            let exp: f64 = (0..7).map(|token| logit(row, position, token).exp()).sum();
            sum += exp.ln() - logit(row, position, *target as usize);
        }
        assert!((found - sum / 6.0).abs() < 1e-5, "{name}: {found}");
    }
}

#[test]
fn gradients_of_the_loss_flow_into_labels_only() {
    let device = cpu_devices().remove(0).1.autodiff();
    let config = CptConfig::new([3, 5, 1, 6]).with_cpt_tokens_type_mask([1, 2, 3, 4]);
    let logits = Tensor::<3>::ones([1, 6, 7], &device).require_grad();
    let loss = config.loss(logits.clone(), &[1, 2], Some(&[3, 4])).unwrap();
    let gradients = loss.backward();
    let gradient = logits
        .grad(&gradients)
        .unwrap()
        .abs()
        .sum_dim(2)
        .into_data();
    let places: Vec<bool> = gradient.iter::<f32>().map(|value| value > 0.0).collect();
    // Behind the third token stands the context's label, behind the fifth the text's.
    assert_eq!(places, [false, false, true, false, true, false]);
}

fn field<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    match result.unwrap_err() {
        Error::Config { field, .. } => field,
        other => panic!("{other}"),
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let base = TinyTransformer::new(&device);
    let config = || CptConfig::new([3, 5]);
    let two = CptConfig {
        num_transformer_submodules: Some(2),
        ..config()
    };
    let three = CptConfig {
        num_virtual_tokens: Some(3),
        ..config()
    };
    for (config, expected) in [
        (CptConfig::new([]), "cpt_token_ids"),
        (CptConfig::new([97]), "cpt_token_ids"),
        (config().with_cpt_mask([1]), "cpt_mask"),
        (
            config().with_cpt_tokens_type_mask([1, 2, 3]),
            "cpt_tokens_type_mask",
        ),
        (
            config().with_opt_projection_epsilon(0.0),
            "opt_projection_epsilon",
        ),
        (
            config().with_opt_projection_format_epsilon(f64::NAN),
            "opt_projection_format_epsilon",
        ),
        (
            config().with_opt_loss_decay_factor(-1.0),
            "opt_loss_decay_factor",
        ),
        (two, "num_transformer_submodules"),
        (three, "num_virtual_tokens"),
    ] {
        assert_eq!(field(base.attach("p", &config)), expected);
    }
    let logits = |positions| Tensor::<3>::zeros([1, positions, 7], &device);
    assert_eq!(field(config().loss(logits(1), &[], None)), "labels");
    assert_eq!(field(config().loss(logits(4), &[1], None)), "labels");
    assert_eq!(field(config().loss(logits(3), &[7], None)), "labels");
    assert_eq!(
        field(config().loss(logits(3), &[1], Some(&[1, 2]))),
        "types"
    );
    assert_eq!(field(config().loss(logits(3), &[1], Some(&[1]))), "types");
    assert_eq!(field(config().loss(logits(3), &[-100], None)), "types");
}

//! Intrinsic prompt tuning: the space of several prompts, and the training in it.

use burn::module::{Param, ParamId};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::device::cpu_devices;
use peft_core::method::PromptAdapter as _;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_soft_prompt::{
    FitConfig, IntrinsicPrompt, IntrinsicPromptConfig, PromptAutoencoder, PromptTuningConfig,
    SoftPrompt, TrainedPrompt,
};

/// Prompts of two tokens of width 4 that depend on two numbers each.
fn on_a_surface(device: &Device, count: usize) -> Vec<TrainedPrompt> {
    let prompt = |at: usize| {
        let (x, y) = ((at as f32 * 1.3).sin(), (at as f32 * 0.7).cos());
        let values = (0..8).map(|n| {
            let n = n as f32;
            (x * (n * 1.7).sin() + y * (n * 2.3).cos() + 0.5 * x * y).tanh()
        });
        let data = TensorData::new(values.collect::<Vec<f32>>(), [2, 4]);
        TrainedPrompt::of_tensor(Tensor::from_data(data, device))
    };
    (0..count).map(prompt).collect()
}

fn error(autoencoder: &PromptAutoencoder, prompts: &[TrainedPrompt]) -> f64 {
    let mut sum = 0.0;
    let mut count = 0;
    for prompt in prompts {
        let decoded = autoencoder.reconstruct(prompt).unwrap();
        let pairs = decoded
            .data()
            .iter::<f64>()
            .zip(prompt.data().iter::<f64>());
        for (a, b) in pairs {
            sum += (a - b).powi(2);
            count += 1;
        }
    }
    sum / f64::from(count)
}

#[test]
fn prompts_on_a_surface_are_decoded_from_two_numbers() {
    for (name, device) in cpu_devices() {
        let prompts = on_a_surface(&device, 16);
        let config = FitConfig::new(2)
            .with_hidden_size(24)
            .with_steps(800)
            .with_learning_rate(1e-2);
        let fitted = PromptAutoencoder::fit(&prompts, &config, &device).unwrap();
        let start = PromptAutoencoder::fit(&prompts, &config.clone().with_steps(0), &device);
        let (before, after) = (error(&start.unwrap(), &prompts), error(&fitted, &prompts));
        println!("{name}: {before}, {after}");
        assert!(after < before / 100.0, "{name}: {before}, {after}");
        // One number is too few.
        let one = FitConfig::new(1).with_hidden_size(24).with_steps(800);
        let one = PromptAutoencoder::fit(&prompts, &one.with_learning_rate(1e-2), &device);
        assert!(error(&one.unwrap(), &prompts) > 3.0 * after, "{name}");
        // One seed, one result.
        let again = PromptAutoencoder::fit(&prompts, &config, &device).unwrap();
        assert_eq!(again.decoder(), fitted.decoder(), "{name}");
        let other = PromptAutoencoder::fit(&prompts, &config.with_seed(1), &device).unwrap();
        assert_ne!(other.decoder(), fitted.decoder(), "{name}");
    }
}

fn state(model: &TinyTransformer) -> IntrinsicPrompt {
    model.adapter_states("p").unwrap().remove(0).1
}

/// `tanh(z W + b) W' + b'`, number by number.
fn decoded(state: &IntrinsicPrompt) -> Vec<f64> {
    let layer = |input: &[f64], weight: Tensor<2>, bias: Tensor<1>| -> Vec<f64> {
        let width = weight.dims()[1];
        let weight: Vec<f64> = weight.into_data().iter().collect();
        let bias: Vec<f64> = bias.into_data().iter().collect();
        let output = |column: usize| {
            let rows = input.iter().enumerate();
            let sum: f64 = rows.map(|(row, x)| x * weight[row * width + column]).sum();
            sum + bias[column]
        };
        (0..width).map(output).collect()
    };
    let point: Vec<f64> = state.intrinsic.val().into_data().iter().collect();
    let inside = layer(&point, state.inner.weight.val(), state.inner.bias.val());
    let inside: Vec<f64> = inside.into_iter().map(f64::tanh).collect();
    layer(&inside, state.outer.weight.val(), state.outer.bias.val())
}

#[test]
fn the_point_alone_is_trained() {
    for (name, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        let base = &fixture.base;
        let mut trained = base.clone();
        for task in ["a", "b", "c"] {
            trained = trained.attach(task, &PromptTuningConfig::new(2)).unwrap();
        }
        let prompts = ["a", "b", "c"].map(|task| TrainedPrompt::of(&trained, task).unwrap());
        let fit = FitConfig::new(3).with_steps(300).with_learning_rate(1e-2);
        let fitted = PromptAutoencoder::fit(&prompts, &fit, &device).unwrap();
        let start = fitted.encode(&prompts[1]).unwrap();
        let config = IntrinsicPromptConfig::of_decoder(fitted.decoder()).with_start(start);
        let mut model = base.attach("p", &config).unwrap();
        let counts = model.counts();
        assert_eq!(counts.trainable, 3, "{name}");
        // 3 numbers, 3 · 32 + 32 and 32 · 64 + 64 of the decoder.
        assert_eq!(counts.stored, 3 + 128 + 2112, "{name}");

        // It starts where the source's prompt is decoded to.
        let expected = fitted.reconstruct(&prompts[1]).unwrap();
        let close = |found: &TensorData, expected: &TensorData| {
            found.assert_approx_eq::<f32>(expected, burn::tensor::Tolerance::absolute(1e-5));
        };
        close(&state(&model).prompt().into_data(), expected.data());
        let found: Vec<f64> = state(&model).prompt().into_data().iter().collect();
        for (found, expected) in found.iter().zip(decoded(&state(&model))) {
            assert!((found - expected).abs() < 1e-5, "{name}");
        }

        let before = model.adapter_tensors("p").unwrap();
        let mut optimizer = AdamConfig::new().init();
        for _ in 0..3 {
            let loss = fixture.loss(&model);
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-1, model, gradients);
        }
        let after = model.adapter_tensors("p").unwrap();
        let changed: Vec<&String> = after
            .iter()
            .filter(|(key, value)| before[*key] != **value)
            .map(|(key, _)| key)
            .collect();
        assert_eq!(changed, ["intrinsic"], "{name}");
        let keys: Vec<&String> = after.keys().collect();
        let expected = [
            "decoder.inner.bias",
            "decoder.inner.weight",
            "decoder.outer.bias",
            "decoder.outer.weight",
            "intrinsic",
        ];
        assert_eq!(keys, expected, "{name}");
    }
}

/// With the tasks' losses the decoded prompts do their tasks better than with the distance alone.
#[test]
fn losses_of_the_tasks_shape_the_space() {
    for (name, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        let model = fixture
            .base
            .attach("p", &PromptTuningConfig::new(2))
            .unwrap();
        let prompts = [TrainedPrompt::of(&model, "p").unwrap()];
        let loss = |prompt: Tensor<2>| {
            let model = model
                .edit_adapter::<SoftPrompt>("p", |_, state| {
                    // No leaf: the gradient goes on into the network that computed it.
                    state.embeddings = Param::initialized(ParamId::new(), prompt.clone());
                })
                .unwrap();
            fixture.loss(&model)
        };
        let config = FitConfig::new(2).with_steps(60).with_learning_rate(1e-2);
        let near = PromptAutoencoder::fit(&prompts, &config, &device).unwrap();
        let mut asked = 0;
        let config = config.with_task_weight(100.0);
        let good = PromptAutoencoder::fit_with_tasks(&prompts, &config, &device, |task, prompt| {
            assert_eq!(task, 0);
            asked += 1;
            loss(prompt)
        });
        assert_eq!(asked, 60);
        let of = |autoencoder: &PromptAutoencoder| {
            let prompt = autoencoder.reconstruct(&prompts[0]).unwrap();
            let prompt = Tensor::from_data(prompt.data().clone(), &device.clone().autodiff());
            loss(prompt).into_scalar::<f32>()
        };
        let (near, good) = (of(&near), of(&good.unwrap()));
        assert!(good < 0.9 * near, "{name}: {good}, {near}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let prompts = on_a_surface(&device, 2);
    let field = |result: Result<PromptAutoencoder, Error>| match result.unwrap_err() {
        Error::Config { field, .. } => field,
        other => panic!("{other}"),
    };
    let fit = |prompts: &[TrainedPrompt], config: FitConfig| {
        PromptAutoencoder::fit(prompts, &config.with_steps(1), &device)
    };
    assert_eq!(field(fit(&[], FitConfig::new(1))), "prompts");
    assert_eq!(field(fit(&prompts, FitConfig::new(0))), "intrinsic_dim");
    let narrow = FitConfig::new(1).with_hidden_size(0);
    assert_eq!(field(fit(&prompts, narrow)), "hidden_size");
    for rate in [0.0, f64::NAN, f64::INFINITY] {
        let config = FitConfig::new(1).with_learning_rate(rate);
        assert_eq!(field(fit(&prompts, config)), "learning_rate");
    }
    let negative = FitConfig::new(1).with_task_weight(-1.0);
    assert_eq!(field(fit(&prompts, negative)), "task_weight");
    let longer = TrainedPrompt::of_tensor(Tensor::zeros([3, 4], &device));
    let mixed = [prompts[0].clone(), longer.clone()];
    assert_eq!(field(fit(&mixed, FitConfig::new(1))), "prompts");
    let fitted = fit(&prompts, FitConfig::new(1)).unwrap();
    assert!(fitted.encode(&longer).is_err());
    let turned = TrainedPrompt::of_tensor(Tensor::zeros([4, 2], &device));
    assert!(fitted.encode(&turned).is_err());

    let base = TinyTransformer::new(&device);
    let of = |config: IntrinsicPromptConfig| match base.attach("p", &config).unwrap_err() {
        Error::Config { field, .. } => field,
        other => panic!("{other}"),
    };
    // The decoder is of width 4, the model of 32.
    let decoder = || IntrinsicPromptConfig::of_decoder(fitted.decoder());
    assert_eq!(of(decoder()), "decoder");
    assert_eq!(of(decoder().with_intrinsic_dim(2)), "intrinsic_dim");
    assert_eq!(
        of(decoder().with_num_virtual_tokens(3)),
        "num_virtual_tokens"
    );
    assert_eq!(
        of(decoder().with_decoder_hidden_size(9)),
        "decoder_hidden_size"
    );
    let config = || IntrinsicPromptConfig::new(2, 3);
    assert_eq!(of(config().with_start(vec![1.0])), "start");
    assert_eq!(of(config().with_start(vec![1.0, f32::NAN, 0.0])), "start");
    assert_eq!(of(IntrinsicPromptConfig::new(2, 0)), "intrinsic_dim");
    assert_eq!(of(IntrinsicPromptConfig::new(0, 2)), "num_virtual_tokens");
    assert_eq!(
        of(config().with_decoder_hidden_size(0)),
        "decoder_hidden_size"
    );
}

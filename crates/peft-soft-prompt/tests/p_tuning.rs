//! P-tuning: where its network starts, what it drops, and what a file holds of it.

use burn::module::{Module as _, Param};
use burn::tensor::{Tensor, TensorData, Tolerance};
use peft_conformance::TinyTransformer;
use peft_core::device::cpu_devices;
use peft_core::method::PromptAdapter as _;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_soft_prompt::{EncodedPrompt, METHODS, PromptEncoder, PromptEncoderConfig};

fn state(model: &TinyTransformer) -> EncodedPrompt {
    let mut states = model.adapter_states::<EncodedPrompt>("p").unwrap();
    assert_eq!(states.len(), 1);
    states.remove(0).1
}

fn encoder(model: &TinyTransformer) -> PromptEncoder {
    match state(model) {
        EncodedPrompt::Encoder(encoder) => encoder,
        EncodedPrompt::Prompt(_) => panic!("a new adapter trains its network"),
    }
}

/// The largest absolute value, and the standard deviation around 0.
fn spread<const D: usize>(param: &Param<Tensor<D>>) -> (f64, f64) {
    let values: Vec<f64> = param.val().into_data().iter().collect();
    let largest = values
        .iter()
        .fold(0.0_f64, |most, next| most.max(next.abs()));
    let squares: f64 = values.iter().map(|value| value * value).sum();
    (largest, (squares / values.len() as f64).sqrt())
}

#[test]
fn the_network_starts_as_torchs_layers_do() {
    let (_, device) = cpu_devices().remove(0);
    device.seed(3);
    let base = TinyTransformer::new(&device);
    let config = PromptEncoderConfig::new(40).with_lstm(2);
    let model = base
        .attach("p", &config.with_encoder_hidden_size(25))
        .unwrap();
    let encoder = encoder(&model);
    let (_, deviation) = spread(&encoder.embeddings);
    assert!((deviation - 1.0).abs() < 0.1, "{deviation}");
    // Uniform with this bound, which all matrices here have values enough to come near.
    let is_uniform = |(largest, deviation): (f64, f64), bound: f64| {
        assert!(
            largest <= bound && largest > 0.95 * bound,
            "{largest}, {bound}"
        );
        let expected = bound / 3.0_f64.sqrt();
        assert!(
            (deviation - expected).abs() < 0.1 * expected,
            "{deviation}, {expected}"
        );
    };
    assert_eq!(encoder.lstm.len(), 2);
    for layer in &encoder.lstm {
        for direction in [&layer.forward, &layer.reverse] {
            is_uniform(spread(&direction.input), 0.2);
            is_uniform(spread(&direction.hidden), 0.2);
            let (largest, _) = spread(&direction.input_bias);
            assert!(largest > 0.1 && largest <= 0.2, "{largest}");
        }
    }
    let widths = encoder.mlp.iter().map(|layer| layer.weight.dims());
    let width = encoder.embeddings.dims()[1];
    assert_eq!(widths.collect::<Vec<_>>(), [[50, 50], [50, width]]);
    for layer in &encoder.mlp {
        is_uniform(spread(&layer.weight), 1.0 / 50.0_f64.sqrt());
    }
}

#[test]
fn dropout_acts_between_the_layers_of_an_lstm_in_training() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let base = TinyTransformer::new(&device);
        let twice = |config: PromptEncoderConfig, trains: bool| {
            let model = base.attach("p", &config.with_encoder_dropout(0.5)).unwrap();
            let model = if trains { model } else { model.valid() };
            let state = state(&model);
            [state.prompt().into_data(), state.prompt().into_data()]
        };
        let lstm = |layers| PromptEncoderConfig::new(3).with_lstm(layers);
        let [first, second] = twice(lstm(2), true);
        assert_ne!(first, second, "{name}");
        for (config, trains) in [
            (lstm(2), false),
            (lstm(1), true),
            (PromptEncoderConfig::new(3), true),
        ] {
            let what = format!("{config:?} on {name}");
            let [first, second] = twice(config, trains);
            assert_eq!(first, second, "{what}");
        }
    }
}

#[test]
fn a_file_holds_the_prompt_which_trains_on() {
    let dir = tempfile::tempdir().unwrap();
    for (name, device) in cpu_devices() {
        let base = TinyTransformer::new(&device.autodiff());
        // Nothing is dropped in a file.
        let config = PromptEncoderConfig::new(3).with_lstm(2);
        let model = base.attach("p", &config.with_encoder_dropout(0.5)).unwrap();
        let computed = state(&model.valid()).prompt().into_data();
        model.save_adapter("p", dir.path()).unwrap();
        let loaded = base.load_adapter("p", dir.path(), METHODS).unwrap();
        let EncodedPrompt::Prompt(embeddings) = state(&loaded) else {
            panic!("{name}: a file has no network");
        };
        embeddings
            .val()
            .into_data()
            .assert_approx_eq(&computed, Tolerance::<f32>::absolute(1e-6));
        assert_eq!(
            loaded.counts().trainable,
            embeddings.val().dims().iter().product::<usize>()
        );
        assert_eq!(model.counts().stored, loaded.counts().stored, "{name}");
        let tensors: Vec<(String, TensorData)> =
            loaded.adapter_tensors("p").unwrap().into_iter().collect();
        assert_eq!(tensors.len(), 1);
        assert_eq!(tensors[0].0, "prompt_embeddings");
    }
}

#[test]
fn what_is_no_network_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let base = TinyTransformer::new(&device);
    let config = || PromptEncoderConfig::new(3);
    let two = PromptEncoderConfig {
        num_transformer_submodules: Some(2),
        ..config()
    };
    for (config, expected) in [
        (PromptEncoderConfig::new(0), "num_virtual_tokens"),
        (config().with_encoder_hidden_size(0), "encoder_hidden_size"),
        (config().with_lstm(0), "encoder_num_layers"),
        (config().with_encoder_dropout(1.0), "encoder_dropout"),
        (config().with_encoder_dropout(f64::NAN), "encoder_dropout"),
        (two, "num_transformer_submodules"),
    ] {
        match base.attach("p", &config).unwrap_err() {
            Error::Config { field, .. } => assert_eq!(field, expected),
            other => panic!("{other}"),
        }
    }
}

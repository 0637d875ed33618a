//! Where virtual tokens start.

use burn::tensor::TensorData;
use peft_conformance::TinyTransformer;
use peft_core::device::cpu_devices;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_soft_prompt::{PromptInit, PromptTuningConfig, SoftPrompt};

fn rows(data: &TensorData) -> Vec<Vec<f32>> {
    let width = data.shape()[1];
    let values: Vec<f32> = data.iter().collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

fn prompt(model: &TinyTransformer) -> Vec<Vec<f32>> {
    let states = model.adapter_states::<SoftPrompt>("p").unwrap();
    assert_eq!(states.len(), 1);
    assert_eq!(states[0].0, "embeddings.word_embeddings");
    rows(&states[0].1.embeddings.val().into_data())
}

#[test]
fn text_and_vocabulary_start_from_the_embedding_table() {
    for (name, device) in cpu_devices() {
        let model = TinyTransformer::new(&device.autodiff());
        let table = rows(&model.embeddings.word_embeddings.weight.val().into_data());

        // Three tokens for five places: the text starts over.
        let text = PromptTuningConfig::new(5).with_text("good or bad", [7, 30, 96]);
        let found = prompt(&model.attach("p", &text).unwrap());
        let expected: Vec<_> = [7, 30, 96, 7, 30]
            .map(|row: usize| table[row].clone())
            .into();
        assert_eq!(found, expected, "{name}");

        let sampled = PromptTuningConfig::new(6).with_prompt_tuning_init(PromptInit::SampleVocab);
        let found = prompt(&model.attach("p", &sampled).unwrap());
        let places: Vec<_> = found
            .iter()
            .map(|row| table.iter().position(|other| other == row).unwrap())
            .collect();
        let mut distinct = places.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(
            distinct.len(),
            6,
            "{name}: rows {places:?} were drawn twice"
        );

        let random = prompt(&model.attach("p", &PromptTuningConfig::new(40)).unwrap());
        let values: Vec<f32> = random.concat();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let std =
            (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt();
        assert!(
            mean.abs() < 0.1 && (std - 1.0).abs() < 0.1,
            "{name}: mean {mean}, std {std}"
        );
    }
}

#[test]
fn what_cannot_start_is_refused() {
    let (_, device) = &cpu_devices()[0];
    let model = TinyTransformer::new(device);
    let refusal = |config: PromptTuningConfig| match model.attach("p", &config).unwrap_err() {
        Error::Config { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(refusal(PromptTuningConfig::new(0)), "num_virtual_tokens");
    assert_eq!(
        refusal(PromptTuningConfig::new(2).with_text("good", [])),
        "init_token_ids"
    );
    assert_eq!(
        refusal(PromptTuningConfig::new(2).with_text("good", [97])),
        "init_token_ids"
    );
}

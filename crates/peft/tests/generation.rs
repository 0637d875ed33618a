//! Adapters of a Llama that reads a text piece by piece, and writes one.

use burn::tensor::{Int, Tensor, TensorData};
use peft::core::method::Method;
use peft::core::{Composition, PeftModule as _};
use peft::reparameterization::LoraConfig;
use peft::soft_prompt::{
    MultitaskPromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig,
};
use peft_models::{GenerateConfig, GenerateError, Llama};

#[test]
fn a_text_read_piece_by_piece_gives_the_same_logits() {
    let methods: [&dyn Method; 4] = [
        &PrefixTuningConfig::new(3),
        &PrefixTuningConfig::new(3).with_projection(8),
        &PromptTuningConfig::new(3),
        &PromptEncoderConfig::new(3).with_lstm(1),
    ];
    for (name, device) in peft::core::device::cpu_devices() {
        let base = Llama::tiny(&device);
        let ids = |part: &[i64]| {
            Tensor::<2, Int>::from_data(TensorData::new(part.to_vec(), [1, part.len()]), &device)
        };
        let text = [7, 30, 21, 5, 19, 44, 3];
        for method in methods {
            let model = base.attach("mine", method).unwrap();
            assert_eq!(model.virtual_tokens(), 3);
            let whole = model.forward(ids(&text), None);
            let last = whole.dims()[1] - 1;
            let whole = whole.slice_dim(1, last..last + 1);
            let mut cache = model.cache();
            model.next_logits(ids(&text[..4]), &mut cache);
            model.next_logits(ids(&text[4..6]), &mut cache);
            let pieces = model.next_logits(ids(&text[6..]), &mut cache);
            assert_eq!(cache.len(), 10);
            let distance: f32 = (whole.squeeze_dim::<2>(1) - pieces)
                .abs()
                .max()
                .into_scalar();
            let title = method.info().title;
            assert!(distance < 1e-5, "{title} on {name}: {distance}");
            let plain = base.forward(ids(&text), None).slice_dim(1, 6..7);
            let whole = model.next_logits(ids(&text), &mut model.cache());
            let moved: f32 = (plain.squeeze_dim::<2>(1) - whole)
                .abs()
                .max()
                .into_scalar();
            assert!(moved > 1e-3, "{title} on {name} changes nothing");
        }
    }
}

/// Generation is of one text: more rows are an error that says so, not a panic.
#[test]
fn a_text_is_generated_with_one_row_only() {
    let (_, device) = peft::core::device::cpu_devices().remove(0);
    let lora = LoraConfig::new(2)
        .with_alpha(7.0)
        .with_targets(["q_proj", "v_proj"])
        .with_init_lora_weights(false);
    let model = Llama::tiny(&device).attach("a", &lora).unwrap();
    let config = GenerateConfig::default()
        .with_max_new_tokens(5)
        .with_eos_token_id([]);
    let mixed = model.set_adapter_per_row(&[Some("a"), None]).unwrap();
    assert_eq!(
        mixed.composition(),
        Composition::PerRow(vec![Some("a".into()), None])
    );
    let error = mixed.generate_ids(&[1, 5, 7], &config).unwrap_err();
    assert!(matches!(error, GenerateError::Rows { rows: 2 }), "{error}");
    let alone = model.set_adapter_per_row(&[Some("a")]).unwrap();
    assert!(matches!(model.composition(), Composition::Stack(_)));
    assert_eq!(
        alone.generate_ids(&[1, 5, 7], &config).unwrap(),
        model.generate_ids(&[1, 5, 7], &config).unwrap()
    );
}

/// A task that the adapter does not have, or none where it has several, is an error that says how many there are.
#[test]
fn a_text_of_a_task_needs_one_that_the_adapter_has() {
    let (_, device) = peft::core::device::cpu_devices().remove(0);
    let base = Llama::tiny(&device);
    let config = GenerateConfig::default()
        .with_max_new_tokens(3)
        .with_eos_token_id([]);
    let generate = |tasks: usize, task: Option<usize>| {
        let method = MultitaskPromptTuningConfig::new(2, tasks);
        let model = base.attach("mine", &method).unwrap();
        let mut config = config.clone();
        config.task = task;
        model.generate_ids(&[1, 5, 7], &config)
    };
    for task in [None, Some(3)] {
        let error = generate(3, task).unwrap_err();
        assert!(
            matches!(
                error,
                GenerateError::Setting {
                    setting: "task",
                    ..
                }
            ),
            "{error}"
        );
        let error = error.to_string();
        assert!(error.contains("3 tasks, counted from 0"), "{error}");
    }
    assert!(generate(1, Some(1)).is_err());
    for (tasks, task) in [(3, Some(2)), (1, None), (1, Some(0))] {
        assert_eq!(generate(tasks, task).unwrap().len(), 3);
    }
    // Adapters without tasks do not mind one.
    let model = base.attach("mine", &PromptTuningConfig::new(2)).unwrap();
    let ids = model.generate_ids(&[1, 5, 7], &config.with_task(9));
    assert_eq!(ids.unwrap().len(), 3);
}

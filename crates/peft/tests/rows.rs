//! What is no weight of a linear layer does not get in among rows with adapters of their own.

use peft::additive::BottleneckConfig;
use peft::core::method::Method;
use peft::core::{Error, PeftModule as _, device::cpu_devices};
use peft::reparameterization::LoraConfig;
use peft::soft_prompt::{PrefixTuningConfig, PromptTuningConfig};
use peft_models::{BertConfig, GenerateConfig, GenerateError, Llama};

#[test]
fn adapters_at_sites_are_not_swapped_in_among_rows() {
    let (_, device) = cpu_devices().remove(0);
    let base = BertConfig::tiny().init(&device);
    let lora = LoraConfig::new(2).with_targets(["query"]);
    let model = base.attach("a", &lora).unwrap().attach("b", &lora).unwrap();
    let mixed = model.set_adapter_per_row(&[Some("a"), Some("b")]).unwrap();
    let others: [&dyn Method; 3] = [
        &BottleneckConfig::houlsby(),
        &PrefixTuningConfig::new(2),
        &PromptTuningConfig::new(2),
    ];
    for method in others {
        let title = method.info().title;
        let dir = tempfile::tempdir().unwrap();
        let other = base.attach("new", method).unwrap();
        other.save_adapter("new", dir.path()).unwrap();
        let swap = |rows: &[Option<&str>]| -> Result<(), Error> {
            let model = model.set_adapter_per_row(rows)?;
            model.swap_adapter("a", dir.path(), &peft::methods())?;
            Ok(())
        };
        let error = swap(&[Some("a"), Some("b")]).unwrap_err();
        assert!(
            matches!(error, Error::PerRowAdapter { .. }),
            "{title}: {error}"
        );
        // Where no row has it, it is no matter.
        swap(&[Some("b"), None]).unwrap();
    }
    assert_eq!(mixed.adapters(), ["a", "b"]);
}

/// Generation is of one text: more rows are an error that says so, not a panic.
#[test]
fn a_text_is_generated_with_one_row_only() {
    let (_, device) = cpu_devices().remove(0);
    let lora = LoraConfig::new(2)
        .with_alpha(7.0)
        .with_init(false)
        .with_targets(["q_proj", "v_proj"]);
    let model = Llama::tiny(&device).attach("a", &lora).unwrap();
    let config = GenerateConfig::default()
        .with_max_new_tokens(5)
        .with_eos_token_id([]);
    let mixed = model.set_adapter_per_row(&[Some("a"), None]).unwrap();
    assert_eq!(mixed.adapter_per_row(), Some(vec![Some("a".into()), None]));
    let error = mixed.generate_ids(&[1, 5, 7], &config).unwrap_err();
    assert!(matches!(error, GenerateError::Rows { rows: 2 }), "{error}");
    let alone = model.set_adapter_per_row(&[Some("a")]).unwrap();
    assert_eq!(model.adapter_per_row(), None);
    assert_eq!(
        alone.generate_ids(&[1, 5, 7], &config).unwrap(),
        model.generate_ids(&[1, 5, 7], &config).unwrap()
    );
}

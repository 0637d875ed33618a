//! What is no weight of a linear layer does not get in among rows with adapters of their own.

use peft::additive::BottleneckConfig;
use peft::core::method::Method;
use peft::core::{Error, PeftModule as _, device::cpu_devices};
use peft::reparameterization::LoraConfig;
use peft::soft_prompt::{PrefixTuningConfig, PromptTuningConfig};
use peft_models::BertConfig;

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

//! Full fine-tuning: everything trains, in place.

use peft_conformance::Fixture;
use peft_core::PeftModule;
use peft_selective::FullConfig;

#[test]
fn everything_trains_in_place() {
    for (name, device) in peft_core::device::cpu_devices() {
        let fixture = Fixture::new(&device);
        let model = fixture.base.attach("full", &FullConfig::new()).unwrap();
        let counts = model.counts();
        assert_eq!(counts.trainable, counts.total, "{name}");
        assert_eq!(
            counts.saved_modules,
            32 * 2 + 2,
            "{name}: the head is counted apart"
        );
        assert!(model.adapters().is_empty());
        let before = fixture.outputs(&model).unwrap();
        let (model, losses) = fixture.train(model, 30, 5e-3);
        assert!(losses[29] < 0.5 * losses[0], "{name}: {losses:?}");
        assert_ne!(fixture.outputs(&model).unwrap(), before);
    }
}

//! Methods that train something else from a step on: the best evaluation is one after that step, and a run goes on on
//! either side of it.

mod common;

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use peft_core::PeftModule as _;
use peft_core::method::Method;
use peft_models::Llama;
use peft_selective::{DiffPruningConfig, FarConfig, LtSftConfig};
use peft_train::{Ending, Length, TrainConfig, TrainOutcome, checkpoint};

const STEPS: usize = 6;

fn config() -> TrainConfig {
    TrainConfig::new()
        .with_length(Length::Steps(STEPS))
        .with_batch_size(4)
        .with_max_length(16)
        // So large that no later evaluation is better than the first.
        .with_learning_rate(0.5)
        .with_eval_every(1)
        .with_keep_best(true)
}

fn model(method: &dyn Method, device: &Device) -> Llama {
    Llama::tiny(device).attach("mine", method).unwrap()
}

fn run(model: Llama, out: &Path, resume: bool, stop_at: Option<usize>) -> (Llama, TrainOutcome) {
    common::run(config(), model, out, resume, stop_at)
}

#[test]
fn runs_go_on_before_and_after_the_step() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let device = device.autodiff();
    let methods: [Box<dyn Method>; 3] = [
        Box::new(LtSftConfig::new().with_keep_ratio(0.01)),
        Box::new(FarConfig::new().with_priming_ratio(0.5)),
        Box::new(
            DiffPruningConfig::new()
                .with_keep_ratio(0.01)
                .with_fixed_ratio(0.5),
        ),
    ];
    for method in &methods {
        let title = method.info().title;
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        let fresh = model(method.as_ref(), &device);
        let (trained, expected) = run(fresh.clone(), &whole, false, None);
        assert!(
            trained.counts().trainable < fresh.counts().trainable,
            "{title}"
        );
        let after = STEPS / 2 + 1;
        let best = expected.best.unwrap();
        assert!(best.step >= STEPS / 2, "{title}: {}", best.step);
        let files = [
            checkpoint::TRAINED_FILE,
            checkpoint::OPTIMIZER_FILE,
            checkpoint::BEST_FILE,
            "adapter_model.safetensors",
        ];
        for stop_at in [after - 2, after - 1, after] {
            let parts = dir.path().join(format!("stopped-{stop_at}"));
            let (_, stopped) = run(fresh.clone(), &parts, false, Some(stop_at));
            assert_eq!(stopped.ending, Ending::Stopped);
            let (_, outcome) = run(model(method.as_ref(), &device), &parts, true, None);
            assert_eq!(outcome.losses, expected.losses, "{title}: {stop_at}");
            assert_eq!(outcome.best, expected.best, "{title}: {stop_at}");
            let last = format!("checkpoint-{STEPS}");
            for file in files {
                let [ours, theirs] =
                    [&parts, &whole].map(|dir| fs::read(dir.join(&last).join(file)));
                assert!(ours.unwrap() == theirs.unwrap(), "{title}: {file} differs");
            }
        }
    }
}

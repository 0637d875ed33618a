//! Gradual unfreezing in the training loop: which layers a step changes, and that a run goes on with it.

mod common;

use std::path::Path;

use burn::tensor::Device;
use common::{texts, words};
use peft_core::state::AdapterState as _;
use peft_core::{LayerGroups, PeftModule as _};
use peft_models::Llama;
use peft_reparameterization::LoraConfig;
use peft_train::{Control, Error, Event, Length, TrainConfig, TrainOutcome, Trainer, checkpoint};

fn config(steps: usize) -> TrainConfig {
    TrainConfig::new()
        .with_length(Length::Steps(steps))
        .with_batch_size(4)
        .with_max_length(16)
        .with_learning_rate(5e-3)
        .with_gradual_unfreezing(Length::Steps(2))
}

fn model(device: &Device) -> Llama {
    let lora = LoraConfig::new(2).with_targets(["embed_tokens", "q_proj", "down_proj"]);
    Llama::tiny(device).attach("mine", &lora).unwrap()
}

fn run(config: &TrainConfig, model: &Llama) -> (Llama, TrainOutcome) {
    let data = texts(&words(), config);
    let mut trainer = Trainer::new(config.clone()).unwrap();
    trainer.train(model.clone(), &data, None).unwrap()
}

/// Names of the adapter's tensors that differ from a fresh one's.
fn moved(trained: &Llama, fresh: &Llama) -> Vec<String> {
    let fresh = fresh.adapter_tensors("mine").unwrap();
    let trained = trained.adapter_tensors("mine").unwrap();
    let moved = trained
        .into_iter()
        .filter(|(key, data)| fresh[key] != *data);
    moved.map(|(key, _)| key).collect()
}

#[test]
fn layers_begin_to_train_one_after_the_other() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let fresh = model(&device.autodiff());
    let names: Vec<String> = LayerGroups::new(&fresh)
        .groups()
        .iter()
        .map(|group| group.name.clone())
        .collect();
    assert_eq!(names, ["model", "model.layers.0", "model.layers.1"]);
    for checkpointing in [false, true] {
        let config = |steps| config(steps).with_gradient_checkpointing(checkpointing);
        for (steps, lowest) in [(2, Some("layers.1")), (4, Some("layers")), (6, None)] {
            let moved = moved(&run(&config(steps), &fresh).0, &fresh);
            let is_above = |key: &String| lowest.is_none_or(|lowest| key.contains(lowest));
            assert!(moved.iter().all(is_above), "{moved:?}");
            let below = ["layers.1", "layers.0", "embed"];
            let reached = below.iter().filter(|part| {
                let mut moved = moved.iter();
                moved.any(|key| key.contains(**part))
            });
            assert_eq!(reached.count(), steps / 2, "{moved:?}");
        }
    }
}

#[test]
fn a_run_goes_on_where_it_was_and_not_without_it() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let fresh = model(&device.autodiff());
    let config = config(5);
    let (whole, outcome) = run(&config, &fresh);
    let folder = tempfile::tempdir().unwrap();
    let data = texts(&words(), &config);
    let trained = |config: &TrainConfig, resume: Option<&Path>, stop: usize| {
        let mut trainer = Trainer::new(config.clone())
            .unwrap()
            .with_output(folder.path())
            .with_observer(move |event| match event {
                Event::Step(report) if report.step == stop => Control::Stop,
                _ => Control::Continue,
            });
        if let Some(resume) = resume {
            trainer = trainer.with_resume(resume);
        }
        let trained = trainer.train(fresh.clone(), &data, None);
        trained.map_err(|error| error.source)
    };
    trained(&config, None, 3).unwrap();
    let newest = checkpoint::latest(folder.path()).unwrap().unwrap();
    let mut other = config.clone();
    other.gradual_unfreezing = None;
    let refused = trained(&other, Some(&newest), 9).map(|_| ()).unwrap_err();
    assert!(matches!(refused, Error::Resume { .. }));
    assert!(refused.to_string().contains("gradual_unfreezing"));
    let (resumed, second) = trained(&config, Some(&newest), 9).unwrap();
    assert_eq!(second.losses, outcome.losses);
    let tensors = |model: &Llama| model.adapter_tensors("mine").unwrap();
    assert_eq!(tensors(&resumed), tensors(&whole));
}

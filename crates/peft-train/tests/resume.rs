//! A run that is stopped and goes on in another process ends with the same numbers, to the last bit: a
//! Llama with LoRA and dropout, and one whose adapter's file holds something else than is trained. One test in a file of its own, because the seeds of CPU devices belong to
//! the process.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use common::{texts, words};
use peft_core::PeftModule as _;
use peft_core::method::Method;
use peft_models::Llama;
use peft_reparameterization::LoraConfig;
use peft_soft_prompt::{
    AdapterHubPrefixConfig, AdaptionPromptConfig, CartridgeConfig, CptConfig,
    IntrinsicPromptConfig, LatePromptConfig, MultitaskPromptTuningConfig, PrefixTuningConfig,
    PromptEncoderConfig,
};
use peft_train::{
    Ending, Length, Schedule, TrainConfig, TrainOutcome, Trainer, Warmup, checkpoint,
};

const STEPS: usize = 6;

fn config() -> TrainConfig {
    TrainConfig::new()
        .with_length(Length::Steps(STEPS))
        .with_batch_size(2)
        .with_gradient_accumulation(2)
        .with_max_length(16)
        .with_packing(true)
        .with_learning_rate(5e-3)
        .with_schedule(Schedule::Cosine)
        .with_warmup(Warmup::Steps(2))
        .with_weight_decay(0.01)
        .with_eval_every(2)
        .with_keep_best(true)
}

/// A new process: other parameter ids, other values in the fresh adapter.
fn model(seed: u64, method: &dyn Method, device: &Device) -> Llama {
    device.seed(seed);
    Llama::tiny(device).attach("mine", method).unwrap()
}

fn run(model: Llama, out: &Path, resume: bool, stop_at: Option<usize>) -> (Llama, TrainOutcome) {
    common::run(config(), model, out, resume, stop_at)
}

/// A whole run and one in two parts, under `dir`: the folders of both.
fn goes_on(method: &dyn Method, device: &Device, dir: &Path) -> [PathBuf; 2] {
    let (whole, parts) = (dir.join("whole"), dir.join("parts"));
    let model = |seed| model(seed, method, device);

    let (_, expected) = run(model(1), &whole, false, None);
    assert_eq!(expected.losses.len(), STEPS);
    let (_, stopped) = run(model(1), &parts, false, Some(3));
    assert_eq!(stopped.ending, Ending::Stopped);
    assert_eq!(stopped.losses, expected.losses[..3]);
    let (resumed, outcome) = run(model(2), &parts, true, None);

    assert_eq!(outcome.losses, expected.losses);
    assert_eq!(outcome.evaluations, expected.evaluations);
    assert_eq!(outcome.best, expected.best);
    let files = [
        checkpoint::TRAINED_FILE,
        checkpoint::OPTIMIZER_FILE,
        checkpoint::BEST_FILE,
        "adapter_model.safetensors",
        "adapter.safetensors",
    ];
    let last = format!("checkpoint-{STEPS}");
    // An adapter's file is called as its library calls it.
    let written = |file: &&str| whole.join(&last).join(file).exists();
    assert_eq!(files.iter().filter(|file| written(file)).count(), 4);
    for file in files.into_iter().filter(written) {
        let [ours, theirs] = [&parts, &whole].map(|dir| fs::read(dir.join(&last).join(file)));
        assert!(ours.unwrap() == theirs.unwrap(), "{file} differs");
    }

    // The folder is an adapter as any other.
    let base = Llama::tiny(device);
    let methods = [method.info()];
    let loaded = base
        .load_adapter("mine", parts.join(&last), &methods)
        .unwrap();
    assert_eq!(loaded.counts().stored, resumed.counts().stored);
    [whole, parts]
}

#[test]
fn a_run_goes_on_to_the_last_bit() {
    for (name, device) in peft_core::device::cpu_devices() {
        println!("{name}");
        let device = device.autodiff();
        let dir = tempfile::tempdir().unwrap();
        let projected = PrefixTuningConfig::new(3).with_projection(12);
        goes_on(&projected, &device, &dir.path().join("prefix"));
        let hub = AdapterHubPrefixConfig::new().with_prefix_length(3);
        let hub = hub.with_bottleneck_size(12).with_dropout(0.2);
        goes_on(&hub, &device, &dir.path().join("hub"));
        goes_on(
            &CartridgeConfig::new(3),
            &device,
            &dir.path().join("cartridge"),
        );
        let prompts = AdaptionPromptConfig::new(3, 1);
        goes_on(&prompts, &device, &dir.path().join("adaption"));
        let late = LatePromptConfig::new().with_dropout(0.2);
        goes_on(&late, &device, &dir.path().join("late"));
        let encoded = PromptEncoderConfig::new(3).with_lstm(2);
        let encoded = encoded.with_encoder_dropout(0.2);
        goes_on(&encoded, &device, &dir.path().join("prompt"));
        // Changes stay within their balls by a hook, which acts from the first step on.
        let context = CptConfig::new([5, 17, 30, 8]).with_cpt_tokens_type_mask([1, 2, 3, 4]);
        goes_on(&context, &device, &dir.path().join("context"));
        let decoded = IntrinsicPromptConfig::new(3, 4);
        goes_on(&decoded, &device, &dir.path().join("decoded"));
        let task = MultitaskPromptTuningConfig::new(3, 1);
        goes_on(&task, &device, &dir.path().join("task"));
        let lora = LoraConfig::new(4).with_lora_dropout(0.2);
        let [_, parts] = goes_on(&lora, &device, dir.path());

        // Other configurations of the adapter are refused.
        let other = Llama::tiny(&device)
            .attach("mine", &LoraConfig::new(4).with_alpha(2.0))
            .unwrap();
        let newest = checkpoint::latest(&parts).unwrap().unwrap();
        let data = texts(&words(), &config());
        let held_out = texts(&["veniam", "quis", "nostrud"], &config());
        let mut trainer = Trainer::new(config()).unwrap().with_resume(newest);
        let refused = trainer.train(other, &data, Some(&held_out)).unwrap_err();
        assert!(refused.to_string().contains("`mine`"), "{name}: {refused}");
    }
}

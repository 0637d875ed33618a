//! What training 0.5 % of MiniLM-L6's elements takes: no gradient of a weight's size, moments and a file of the chosen
//! elements.
//!
//! One test in a program of its own: the allocator counts what the whole process has.

use std::alloc::System;
use std::fs;

use burn::module::Module as _;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor};
use cap::Cap;
use peft::core::PeftModule as _;
use peft::core::calibration::Calibrate as _;
use peft::core::device::cpu_devices;
use peft::selective::{FishMaskConfig, FullConfig};
use peft_models::{BertClassifier, BertConfig, Pooling};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// ⌊0.5 %⌋ of 22,713,216.
const CHOSEN: usize = 113_566;
const FLOAT: usize = 4;
const MIB: usize = 1 << 20;

fn minilm_l6(device: &Device) -> BertClassifier {
    let mut config = BertConfig::tiny();
    config.vocab_size = 30522;
    config.hidden_size = 384;
    config.num_hidden_layers = 6;
    config.num_attention_heads = 12;
    config.intermediate_size = 1536;
    config.max_position_embeddings = 512;
    let bert = config.init(device);
    BertClassifier::new_head(bert, 2, Pooling::Mean, 0.0, device).unwrap()
}

fn loss(model: &BertClassifier, device: &Device) -> Tensor<1> {
    let ids = Tensor::<2, Int>::from_data([[101, 2023, 2003, 2204, 102]], device);
    model.forward(ids, None).square().mean()
}

/// Bytes that AdamW keeps once it has stepped.
fn optimizer_state(model: BertClassifier, device: &Device) -> usize {
    let mut optimizer = AdamWConfig::new().init();
    // What is made once for good: threads, tables.
    let gradients = GradientsParams::from_grads(loss(&model, device).backward(), &model);
    let before = ALLOCATOR.allocated();
    let held = gradients.len();
    assert!(held > 0);
    let model = optimizer.step(1e-3, model, gradients);
    let with_state = ALLOCATOR.allocated();
    drop(optimizer);
    let state = with_state.saturating_sub(ALLOCATOR.allocated());
    // The gradients went, and nothing came but the state.
    assert!(with_state < before + state + MIB, "{state}");
    drop(model);
    state
}

#[test]
fn memory_and_file_are_in_proportion_to_the_elements_that_train() {
    let flex = |(name, _): &(&str, Device)| *name == "flex";
    let Some((_, device)) = cpu_devices().into_iter().find(flex) else {
        peft_testing::skip("the sparse product is for the backend `flex`");
        return;
    };
    let base = minilm_l6(&device).train();
    let device = device.autodiff();
    let config = FishMaskConfig::new();
    let one = |model: &BertClassifier, ()| loss(model, &device);
    let model = base.attach_on("a", &config, [()], one).unwrap();
    assert_eq!(model.counts().adapter_trainable(), CHOSEN);

    // A value and an index each, and a header of names.
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path()).unwrap();
    let file = fs::metadata(dir.path().join("adapter_model.safetensors")).unwrap();
    let bytes = file.len() as usize;
    let exact = 2 * FLOAT * CHOSEN;
    assert!((exact..exact + 64 * 1024).contains(&bytes), "{bytes}");

    // A step of full fine-tuning has gradients of 87 MiB, of which the table's is 45. Whoever asks for more than a tenth of
    // them is told that there is none, and the process ends.
    loss(&model, &device).backward();
    ALLOCATOR
        .set_limit(ALLOCATOR.allocated() + 9 * MIB)
        .unwrap();
    let state = optimizer_state(model, &device);
    ALLOCATOR.set_limit(usize::MAX).unwrap();
    let exact = 2 * FLOAT * CHOSEN;
    assert!((exact..exact + 128 * 1024).contains(&state), "{state}");

    let full = base.attach("full", &FullConfig::new()).unwrap();
    let of_all = optimizer_state(full, &device);
    let share = state as f64 / of_all as f64;
    assert!((0.005..0.006).contains(&share), "{state} of {of_all}");
}

//! Norms of every kind are trained, saved and merged; running statistics stay the model's.

use burn::module::{Module as _, Param};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData};
use peft::core::state::AdapterState as _;
use peft::core::{PeftModule, device::cpu_devices};
use peft::reparameterization::LoraConfig;
use peft::selective::LnTuningConfig;
use peft_conformance::perturb;
use peft_testing::farthest;

use crate::zoo::{WIDTH, Zoo, values};

const NORMS: [&str; 4] = ["layer_norm", "rms_norm", "batch_norm", "group_norm"];

fn through(model: &Zoo, norm: &str, device: &Device) -> Tensor<2> {
    let input = values([6, WIDTH], 9, device);
    match norm {
        "layer_norm" => model.layer_norm.forward(input),
        "rms_norm" => model.rms_norm.forward(input),
        "batch_norm" => model.batch_norm.forward(input),
        _ => model.group_norm.forward(input),
    }
}

fn statistics(model: &Zoo) -> [TensorData; 2] {
    let norm = &model.batch_norm;
    [&norm.running_mean, &norm.running_var].map(|statistic| statistic.value_sync().into_data())
}

/// The model, of which the norm over batches goes by what it gathered, as one that is fine-tuned should.
fn model(device: &Device) -> Zoo {
    let mut model = Zoo::new(device);
    let norm = &mut model.batch_norm;
    norm.training = Param::from_bool(false);
    norm.running_mean.update(values([WIDTH], 11, device) * 0.2);
    norm.running_var
        .update(values([WIDTH], 12, device).square() + 0.5);
    let _ = (
        norm.running_mean.value_sync(),
        norm.running_var.value_sync(),
    );
    model
}

#[test]
fn norms_of_every_kind_are_trained() {
    for (_, device) in cpu_devices() {
        let autodiff = device.clone().autodiff();
        for norm in NORMS {
            let base = model(&autodiff);
            let before = statistics(&base);
            let config = LnTuningConfig::new().with_targets([norm]);
            let mut model = base.attach("a", &config).unwrap();
            let vectors = if norm == "rms_norm" { 1 } else { 2 };
            assert_eq!(model.counts().trainable, vectors * WIDTH, "{norm}");
            let plain = through(&base.valid(), norm, &device).into_data();
            let fresh = through(&model.valid(), norm, &device).into_data();
            assert_eq!(fresh, plain, "{norm}");
            let mut optimizer = AdamConfig::new().init();
            for _ in 0..3 {
                let loss = (through(&model, norm, &autodiff) - 0.5)
                    .powi_scalar(2)
                    .mean();
                let gradients = GradientsParams::from_grads(loss.backward(), &model);
                model = optimizer.step(1e-1, model, gradients);
            }
            assert_eq!(statistics(&model), before, "{norm}");
            let trained = through(&model.valid(), norm, &device).into_data();
            assert!(farthest(trained.iter::<f32>(), plain.iter::<f32>()) > 1e-2);
            let disabled = model.valid().disable_adapters().unwrap();
            assert_eq!(
                through(&disabled, norm, &device).into_data(),
                plain,
                "{norm}"
            );
            let merged = model.valid().merge_and_unload().unwrap();
            let merged = through(&merged, norm, &device).into_data();
            assert!(farthest(merged.iter::<f32>(), trained.iter::<f32>()) < 1e-5);
            let dir = tempfile::tempdir().unwrap();
            model.save_adapter("a", dir.path()).unwrap();
            let loaded = base.valid().load_adapter("b", dir.path(), &peft::methods());
            let loaded = loaded.unwrap();
            assert_eq!(
                through(&loaded, norm, &device).into_data(),
                trained,
                "{norm}"
            );
        }
    }
}

/// Names of the tensors of an adapter's file, without what is in front of all.
fn keys(model: &Zoo) -> Vec<String> {
    let keys = model.adapter_tensors("a").unwrap().into_keys();
    let short = |key: String| key.replace("base_model.model.", "");
    keys.map(short).collect()
}

#[test]
fn files_hold_running_statistics_beside_what_is_trained() {
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    let base = model(&device);
    let tuned = LnTuningConfig::new().with_targets(["batch_norm", "group_norm"]);
    let tuned = base.attach("a", &tuned).unwrap();
    assert_eq!(
        keys(&tuned),
        [
            "batch_norm.ln_tuning_layers.bias",
            "batch_norm.ln_tuning_layers.num_batches_tracked",
            "batch_norm.ln_tuning_layers.running_mean",
            "batch_norm.ln_tuning_layers.running_var",
            "batch_norm.ln_tuning_layers.weight",
            "group_norm.ln_tuning_layers.bias",
            "group_norm.ln_tuning_layers.weight",
        ]
    );
    let saved = LoraConfig::new(4)
        .with_targets(["linear"])
        .with_modules_to_save(["batch_norm"]);
    let saved = perturb(base.attach("a", &saved).unwrap(), "a");
    assert_eq!(
        keys(&saved),
        [
            "batch_norm.bias",
            "batch_norm.num_batches_tracked",
            "batch_norm.running_mean",
            "batch_norm.running_var",
            "batch_norm.weight",
            "linear.lora_A.weight",
            "linear.lora_B.weight",
        ]
    );
    assert_eq!(saved.counts().trainable, 8 * WIDTH + 2 * WIDTH);
    let dir = tempfile::tempdir().unwrap();
    saved.save_adapter("a", dir.path()).unwrap();
    let loaded = base
        .load_adapter("b", dir.path(), &peft::methods())
        .unwrap();
    let expected = through(&saved, "batch_norm", &device).into_data();
    assert_eq!(
        through(&loaded, "batch_norm", &device).into_data(),
        expected
    );
    // A model that gathered something else is another model.
    let other = Zoo::new(&device);
    let refused = other.load_adapter("b", dir.path(), &peft::methods());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("running_mean"), "{refused}");
}

#[test]
fn running_statistics_are_no_parameters() {
    let (_, device) = cpu_devices().remove(0);
    let layout = model(&device).layout();
    let buffers = layout.params.iter().filter(|param| param.is_buffer());
    let names: Vec<&str> = buffers.map(|param| param.name.as_str()).collect();
    assert_eq!(names, ["batch_norm.running_mean", "batch_norm.running_var"]);
}

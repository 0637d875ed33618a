//! AdapterHub's prefixes: their files, their dropout, and what is refused.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module as _;
use burn::tensor::{DType, Int, Tensor, TensorData};
use peft_conformance::TinyTransformer;
use peft_core::device::cpu_devices;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule as _, checkpoint};
use peft_soft_prompt::{AdapterHubPrefix, AdapterHubPrefixConfig, METHODS};
use serde_json::json;

fn read(path: &Path) -> BTreeMap<String, TensorData> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = |view: safetensors::tensor::TensorView<'_>| {
        let shape = view.shape().to_vec();
        TensorData::from_bytes_vec(view.data().to_vec(), shape, DType::F32)
    };
    let tensors = file.iter().map(|(key, view)| (key.to_string(), data(view)));
    tensors.collect()
}

fn config() -> AdapterHubPrefixConfig {
    let config = AdapterHubPrefixConfig::new().with_prefix_length(3);
    config.with_bottleneck_size(6)
}

#[test]
fn a_file_is_laid_out_as_adapterhubs() {
    let (_, device) = cpu_devices().remove(0);
    let base = TinyTransformer::new(&device);
    let dir = tempfile::tempdir().unwrap();
    let config = config().with_use_gating(true).with_leave_out([0]);
    let model = base.attach("mine", &config).unwrap();
    model.save_adapter("mine", dir.path()).unwrap();
    let path = dir.path().join(checkpoint::ADAPTERHUB_FILE);
    let tensors = read(&path);
    let pool = "prefix_tuning.prefix_tunings.mine.self_prefix";
    let gate = "encoder.layer.1.attention.self.prefix_tuning.prefix_gates.mine";
    let mut expected = vec![
        (format!("{gate}.bias"), vec![1]),
        (format!("{gate}.weight"), vec![1, 32]),
        (format!("{pool}.control_trans.0.bias"), vec![6]),
        (format!("{pool}.control_trans.0.weight"), vec![6, 32]),
        (format!("{pool}.control_trans.2.bias"), vec![64]),
        (format!("{pool}.control_trans.2.weight"), vec![64, 6]),
        (format!("{pool}.wte.weight"), vec![3, 32]),
    ];
    expected.sort();
    let found: Vec<_> = tensors
        .iter()
        .map(|(key, data)| (key.clone(), data.shape().to_vec()))
        .collect();
    assert_eq!(found, expected);
    let written = checkpoint::read_config(dir.path()).unwrap();
    assert_eq!(written["hidden_size"], 32);
    assert_eq!(written["name"], "mine");
    assert_eq!(
        written["config"],
        json!({
            "architecture": "prefix_tuning", "bottleneck_size": 6, "cross_prefix": true, "dropout": 0.0,
            "encoder_prefix": true, "flat": false, "init_weights_seed": null, "leave_out": [0],
            "non_linearity": "tanh", "prefix_length": 3, "shared_gating": true, "use_gating": true,
        })
    );
}

/// The network is below every layer once more, also below those without a prefix, and all must be one.
#[test]
fn copies_in_a_file_must_be_equal() {
    let (_, device) = cpu_devices().remove(0);
    let base = TinyTransformer::new(&device);
    for config in [config(), config().with_leave_out([1])] {
        let dir = tempfile::tempdir().unwrap();
        let model = base.attach("mine", &config).unwrap();
        model.save_adapter("mine", dir.path()).unwrap();
        let path = dir.path().join(checkpoint::ADAPTERHUB_FILE);
        let mut tensors = read(&path);
        let key = "prefix_tuning.prefix_tunings.mine.self_prefix.control_trans.2.weight";
        let copy = "encoder.layer.1.attention.self.prefix_tuning.pool.prefix_tunings.mine.self_prefix.control_trans.2.weight";
        let data = tensors[key].clone();
        tensors.insert(copy.into(), data.clone());
        checkpoint::write_tensors(&path, &tensors).unwrap();
        let loaded = base.load_adapter("again", dir.path(), METHODS).unwrap();
        assert_eq!(loaded.counts().trainable, model.counts().trainable);
        let mut values: Vec<f32> = data.iter().collect();
        values[5] += 1.0;
        tensors.insert(copy.into(), TensorData::new(values, data.shape()));
        checkpoint::write_tensors(&path, &tensors).unwrap();
        let error = base.load_adapter("again", dir.path(), METHODS).unwrap_err();
        assert!(error.to_string().contains(copy), "{error}");
    }
}

#[test]
fn rows_drop_other_numbers_in_training() {
    for (name, device) in cpu_devices() {
        let base = TinyTransformer::new(&device.clone().autodiff());
        let model = base
            .attach("mine", &config().with_flat(true).with_dropout(0.5))
            .unwrap();
        let twice = |device| {
            let data = TensorData::from([[3_i64, 8, 21, 5], [3, 8, 21, 5]]);
            Tensor::<2, Int>::from_data(data, &device)
        };
        let rows = |output: Tensor<2>| -> [Vec<f32>; 2] {
            [0, 1].map(|row| {
                let row = output.clone().slice_dim(0, row..row + 1);
                row.into_data().iter().collect()
            })
        };
        let [one, other] = rows(model.forward(twice(device.clone().autodiff()), None));
        assert_ne!(one, other, "{name}");
        let [one, other] = rows(model.valid().forward(twice(device), None));
        assert_eq!(one, other, "{name}");
    }
}

#[test]
fn a_gate_is_half_open_at_zero() {
    let (_, device) = cpu_devices().remove(0);
    let base = TinyTransformer::new(&device);
    let ids = || Tensor::<2, Int>::from_data(TensorData::from([[3_i64, 8, 21, 5]]), &device);
    let config = config().with_flat(true).with_use_gating(true);
    let model = base.attach("mine", &config).unwrap();
    let closed = |state: &mut AdapterHubPrefix| {
        let gate = state.gate.as_mut().unwrap();
        gate.weight = gate.weight.clone().map(|value| value * 0.0);
        gate.bias = gate.bias.clone().map(|value| value * 0.0);
    };
    let half = model
        .edit_adapter("mine", |_, state: &mut AdapterHubPrefix| closed(state))
        .unwrap();
    // Keys and values of half the size, without a gate.
    let plain = half
        .edit_adapter("mine", |_, state: &mut AdapterHubPrefix| {
            state.gate = None;
        })
        .unwrap();
    let tensors = plain.adapter_tensors("mine").unwrap();
    let halved = tensors.into_iter().map(|(key, data)| {
        let values: Vec<f32> = data.iter::<f32>().map(|value| value / 2.0).collect();
        (key, TensorData::new(values, data.shape()))
    });
    let plain = plain
        .with_adapter_tensors("mine", halved.collect())
        .unwrap();
    let [a, b] = [&half, &plain].map(|model| model.hidden(ids(), None).into_data());
    let distance = peft_testing::farthest(a.iter::<f64>(), b.iter::<f64>());
    assert!(distance < 1e-6, "{distance}");
}

#[test]
fn what_cannot_work_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let base = TinyTransformer::new(&device);
    for (config, expected) in [
        (config().with_prefix_length(0), "prefix_length"),
        (config().with_bottleneck_size(0), "bottleneck_size"),
        (config().with_dropout(1.0), "dropout"),
        (config().with_leave_out([0, 1]), "leave_out"),
    ] {
        match base.attach("mine", &config).unwrap_err() {
            Error::Config { field, .. } => assert_eq!(field, expected),
            other => panic!("{other}"),
        }
    }
}

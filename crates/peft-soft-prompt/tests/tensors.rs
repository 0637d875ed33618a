//! An adapter's tensors in memory, and files that declare what they do not hold.

use std::collections::BTreeMap;

use burn::module::Module as _;
use burn::tensor::{Int, Tensor, TensorData};
use peft_conformance::TinyTransformer;
use peft_core::device::cpu_devices;
use peft_core::method::Method;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule as _, checkpoint};
use peft_soft_prompt::{METHODS, PrefixTuningConfig, PromptEncoderConfig};

fn hidden(model: &TinyTransformer) -> TensorData {
    let device = cpu_devices().remove(0).1;
    let ids = Tensor::<2, Int>::from_data(TensorData::from([[3_i64, 8, 21, 5]]), &device);
    model.valid().hidden(ids, None).into_data()
}

fn reason(model: &TinyTransformer, tensors: BTreeMap<String, TensorData>) -> String {
    match model.with_adapter_tensors("p", tensors).unwrap_err() {
        Error::Tensors { adapter, reason } if adapter == "p" => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn tensors_go_from_one_model_to_another() {
    let device = cpu_devices().remove(0).1.autodiff();
    let base = TinyTransformer::new(&device);
    let methods: [&dyn Method; 4] = [
        &PrefixTuningConfig::new(3),
        &PrefixTuningConfig::new(3).with_projection(8),
        &PromptEncoderConfig::new(3),
        &PromptEncoderConfig::new(3).with_lstm(2),
    ];
    for method in methods {
        device.seed(1);
        let one = base.attach("p", method).unwrap();
        device.seed(2);
        let other = base.attach("p", method).unwrap();
        assert_ne!(hidden(&one), hidden(&other));
        let tensors = one.adapter_tensors("p").unwrap();
        let elements: usize = tensors.values().map(TensorData::num_elements).sum();
        assert_eq!(elements, one.counts().trainable);
        let taken = other.with_adapter_tensors("p", tensors.clone()).unwrap();
        assert_eq!(hidden(&taken), hidden(&one));
        assert_eq!(taken.counts(), one.counts());

        let key = tensors.keys().next().unwrap().clone();
        let mut few = tensors.clone();
        few.remove(&key);
        assert_eq!(reason(&other, few), format!("tensor `{key}` is missing"));
        let mut many = tensors.clone();
        many.insert("more".into(), TensorData::from([1.0_f32]));
        assert!(reason(&other, many).contains("no place for tensor `more`"));
        let mut narrow = tensors.clone();
        narrow.insert(key.clone(), TensorData::from([[1.0_f32]]));
        assert!(reason(&other, narrow).contains("has shape [1, 1]"));
    }
    assert!(matches!(
        base.adapter_tensors("p"),
        Err(Error::UnknownAdapter { .. })
    ));
}

#[test]
fn virtual_tokens_that_a_file_does_not_hold_take_no_memory() {
    let device = cpu_devices().remove(0).1;
    let base = TinyTransformer::new(&device);
    let dir = tempfile::tempdir().unwrap();
    let methods: [&dyn Method; 2] = [&PrefixTuningConfig::new(3), &PromptEncoderConfig::new(3)];
    for method in methods {
        let model = base.attach("p", method).unwrap();
        model.save_adapter("p", dir.path()).unwrap();
        let mut config = checkpoint::read_config(dir.path()).unwrap();
        for field in ["num_virtual_tokens", "encoder_hidden_size"] {
            config[field] = 1_000_000_000_000_u64.into();
        }
        std::fs::write(dir.path().join(checkpoint::CONFIG_FILE), config.to_string()).unwrap();
        let error = base.load_adapter("q", dir.path(), METHODS).unwrap_err();
        assert!(error.to_string().contains("1000000000000"), "{error}");
    }
}

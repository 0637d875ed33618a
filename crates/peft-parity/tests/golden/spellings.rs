//! Checkpoints of other tools and their spellings, on a Llama; what cannot be read says how it can.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use peft_core::PeftModule;
use peft_core::checkpoint::write_tensors;
use peft_core::state::AdapterState as _;
use peft_models::Llama;
use peft_parity::golden;
use peft_reparameterization::METHODS;
use safetensors::{Dtype, SafeTensors};

use crate::LLAMA;

const CASES: &str = "../peft-reparameterization/tests/golden/llama_spellings";
const FILE: &str = "adapter_model.safetensors";

fn base() -> Llama {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    Llama::load(LLAMA, &device).unwrap()
}

fn read(case: &str) -> BTreeMap<String, TensorData> {
    let bytes = fs::read(Path::new(CASES).join(case).join(FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(key, view): (&str, safetensors::tensor::TensorView<'_>)| {
        assert_eq!(view.dtype(), Dtype::F32);
        let (bytes, shape) = (view.data().to_vec(), view.shape().to_vec());
        let data = TensorData::from_bytes_vec(bytes, shape, DType::F32);
        (key.to_string(), data)
    };
    file.iter().map(tensor).collect()
}

/// A folder with a case's configuration and other tensors.
fn folder(case: &str, tensors: &BTreeMap<String, TensorData>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = "adapter_config.json";
    fs::copy(
        Path::new(CASES).join(case).join(config),
        dir.path().join(config),
    )
    .unwrap();
    write_tensors(&dir.path().join(FILE), tensors).unwrap();
    dir
}

fn refusal(dir: &tempfile::TempDir) -> String {
    let error = base().load_adapter("a", dir.path(), METHODS).unwrap_err();
    error.to_string()
}

#[test]
fn other_spellings_compute_what_upstream_computes() {
    golden::check(
        Path::new(LLAMA),
        Path::new(CASES),
        &[
            "orig_mod",
            "name_in_keys",
            "all_linear_capitals",
            "pattern_empty_text",
            "pattern_empty_list",
            "table_f32",
        ],
        METHODS,
    );
}

#[test]
fn names_of_two_adapters_in_the_keys_are_refused() {
    let mut tensors = read("name_in_keys");
    let others: Vec<_> = tensors
        .iter()
        .map(|(key, data)| (key.replace(".default.", ".second."), data.clone()))
        .collect();
    tensors.extend(others);
    let error = refusal(&folder("name_in_keys", &tensors));
    assert!(error.contains("`default`, `second`"), "{error}");
}

#[test]
fn a_name_in_some_of_the_keys_is_a_damage() {
    let mut tensors = read("name_in_keys");
    let (key, data) = tensors.pop_first().unwrap();
    tensors.insert(key.replace(".default", ""), data);
    let error = refusal(&folder("name_in_keys", &tensors));
    assert!(
        error.contains("is missing") && error.contains(".default.weight"),
        "{error}"
    );
}

#[test]
fn a_name_above_the_layer_is_no_adapters_name() {
    let other =
        |key: &String| key.replace("_orig_mod.base_model.model.", "base_model.model.decoder.");
    let tensors = read("orig_mod");
    let renamed = tensors.iter().map(|(key, data)| (other(key), data.clone()));
    let error = refusal(&folder("orig_mod", &renamed.collect()));
    assert!(
        error.contains("is missing") && error.contains("base_model.model.decoder.model"),
        "{error}"
    );
}

#[test]
fn a_missing_tensor_is_named_with_what_is_there_instead() {
    let other = |key: &String| key.replace("q_proj", "query");
    let tensors = read("name_in_keys");
    let renamed = tensors.iter().map(|(key, data)| (other(key), data.clone()));
    let error = refusal(&folder("name_in_keys", &renamed.collect()));
    assert!(
        error.contains("q_proj.lora_A.weight` is missing")
            && error.contains("query.lora_A.default.weight"),
        "{error}"
    );
}

#[test]
fn a_table_in_16_bits_is_the_bases() {
    let key = "base_model.model.model.embed_tokens.base_layer.weight";
    let whole = read("table_f32");
    for dtype in [DType::BF16, DType::F16] {
        let mut tensors = whole.clone();
        let table = whole[key].clone().convert_dtype(dtype);
        assert_ne!(
            table.clone().convert_dtype(DType::F32),
            whole[key],
            "it is rounded"
        );
        tensors.insert(key.into(), table.clone());
        let dir = folder("table_f32", &tensors);
        base().load_adapter("a", dir.path(), METHODS).unwrap();
        // Another table, by a few of its last places in one element.
        let mut values: Vec<f32> = table.iter().collect();
        values[40] *= 1.05;
        let other = TensorData::new(values, table.shape().clone()).convert_dtype(dtype);
        tensors.insert(key.into(), other);
        let error = refusal(&folder("table_f32", &tensors));
        assert!(error.contains("another `model.embed_tokens`"), "{error}");
    }
    // In 32 bits nothing is rounded.
    let mut tensors = whole.clone();
    let rounded = whole[key].clone().convert_dtype(DType::BF16);
    tensors.insert(key.into(), rounded.convert_dtype(DType::F32));
    let error = refusal(&folder("table_f32", &tensors));
    assert!(error.contains("another `model.embed_tokens`"), "{error}");
}

#[test]
fn a_pickled_file_is_refused_with_the_way_to_convert_it() {
    for pickled in ["adapter_model.bin", "pytorch_adapter.bin"] {
        let dir = folder("orig_mod", &read("orig_mod"));
        fs::remove_file(dir.path().join(FILE)).unwrap();
        fs::write(dir.path().join(pickled), b"no pickle").unwrap();
        let error = refusal(&dir);
        for expected in [pickled, FILE, "safetensors.torch.save_file", "weights_only"] {
            assert!(error.contains(expected), "{error}");
        }
    }
}

#[test]
fn a_file_of_torch_compile_gives_the_tensors_of_the_plain_one() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let case = Path::new(CASES).join("orig_mod");
    let model = base().load_adapter("a", case, METHODS).unwrap();
    let tensors = model.adapter_tensors("a").unwrap();
    for (key, data) in read("orig_mod") {
        let plain = key.strip_prefix("_orig_mod.").unwrap();
        let (ours, theirs) = (tensors[plain].clone(), data);
        assert_eq!(ours, theirs, "{key}");
        let largest: f32 = Tensor::<2>::from_data(ours, &device)
            .abs()
            .max()
            .into_scalar();
        assert!(largest > 0.0);
    }
}

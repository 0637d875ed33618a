//! Files that Python pickled (`pytorch_adapter.bin`, `adapter_model.bin`) and heads beside adapters: read as AdapterHub
//! means them, and nothing in them is run, in bounded memory.

use std::alloc::System;
use std::fs;
use std::path::Path;

use burn::tensor::{Bool, Int, Tensor, TensorData};
use cap::Cap;
use peft::core::method::MethodInfo;
use peft::core::{Error, PeftModule};
use peft_models::{Bert, BertClassifier, Pooling};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// The model and the files are some hundred KiB; whoever asks for much more is told that there is none, and the
/// process ends.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 1 << 29);

const BASE: &str = "../peft-models/tests/golden/bert/base";
const FILES: &str = "tests/golden/pickled";

fn encoder() -> Bert {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    Bert::load(BASE, device).unwrap()
}

fn classifier(classes: usize) -> BertClassifier {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    BertClassifier::new_head(encoder(), classes, Pooling::Cls, 0.0, device).unwrap()
}

fn methods() -> Vec<&'static MethodInfo> {
    peft::methods()
}

/// A copy of a folder.
fn copied(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(Path::new(FILES).join(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    dir
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The logits of a folder's inputs, and those that Python computed.
fn logits(model: &BertClassifier, dir: &Path) -> (TensorData, TensorData) {
    let bytes = fs::read(dir.join("io.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let data = |key: &str, dtype| {
        let view = file.tensor(key).unwrap();
        TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype)
    };
    let whole =
        |key: &str| Tensor::<2, Int>::from_data(data(key, burn::tensor::DType::I64), device);
    let padding: Tensor<2, Bool> = whole("attention_mask").equal_elem(0);
    let found = model.forward(whole("input_ids"), Some(padding));
    (found.into_data(), data("output", burn::tensor::DType::F32))
}

#[test]
fn a_folder_as_adapterhub_leaves_it_computes_what_it_computes() {
    for (folder, name) in [("static", "a"), ("flexible", "b"), ("two_layers", "c")] {
        let dir = copied(folder);
        let model = classifier(3)
            .load_adapter(name, dir.path(), &methods())
            .unwrap();
        let (found, expected) = logits(&model, dir.path());
        let distance = peft_testing::farthest(found.iter::<f32>(), expected.iter::<f32>());
        assert!(distance < 1e-4, "{folder}: {distance}");

        let again = tempfile::tempdir().unwrap();
        model.save_adapter(name, again.path()).unwrap();
        let head = json_of(&again.path().join("head_config.json"));
        assert_eq!(
            head,
            json_of(&dir.path().join("head_config.json")),
            "{folder}"
        );
        let bytes = fs::read(again.path().join("model_head.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (key, count) = match folder {
            "static" => ("classifier.weight", 2),
            "flexible" => ("heads.b.1.weight", 2),
            _ => ("heads.c.4.weight", 4),
        };
        assert_eq!(file.tensor(key).unwrap().shape(), [3, 32], "{folder}");
        assert_eq!(file.len(), count, "{folder}");
        let model = classifier(3)
            .load_adapter("d", again.path(), &methods())
            .unwrap();
        assert_eq!(logits(&model, dir.path()).0, found, "{folder}");
    }
}

#[test]
fn a_head_that_does_not_fit_is_refused() {
    let dir = copied("flexible");
    let refused = |error: Error, words: &[&str]| {
        for word in words {
            assert!(error.to_string().contains(word), "no {word} in: {error}");
        }
    };
    let error = encoder()
        .load_adapter("b", dir.path(), &methods())
        .unwrap_err();
    refused(
        error,
        &[
            "pytorch_model_head.bin",
            "the model has none",
            "head_config.json",
        ],
    );
    let error = classifier(2)
        .load_adapter("b", dir.path(), &methods())
        .unwrap_err();
    refused(error, &["classifier.weight", "[3, 32]", "[2, 32]"]);

    // Two linear layers with an activation between them.
    let data = TensorData::new(vec![0.0_f32; 32], [32]);
    let tensors = ["heads.b.1.bias", "heads.b.4.bias"].map(|key| (key.to_string(), data.clone()));
    let path = dir.path().join("model_head.safetensors");
    peft_core::checkpoint::write_tensors(&path, &tensors.into()).unwrap();
    let error = classifier(3)
        .load_adapter("b", dir.path(), &methods())
        .unwrap_err();
    refused(
        error,
        &[
            "model_head.safetensors",
            "heads.b.4.bias",
            "one linear layer",
        ],
    );

    // Without the head the rest is an adapter by itself, and does not take up another's head.
    for file in ["model_head.safetensors", "pytorch_model_head.bin"] {
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    let model = encoder().load_adapter("b", dir.path(), &methods()).unwrap();
    let error = model
        .save_adapter("b", copied("flexible").path())
        .unwrap_err();
    refused(error, &["pytorch_model_head.bin", "another folder"]);
}

/// Changes a JSON file.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = json_of(path);
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_head_that_computes_something_else_is_refused() {
    for (field, value, said) in [
        ("use_pooler", json!(false), "`use_pooler` is false"),
        ("use_pooler", Value::Null, "`use_pooler` is null"),
        (
            "head_type",
            json!("question_answering"),
            "`head_type` is \"question_answering\"",
        ),
        ("head_type", json!("tagging"), "`head_type` is \"tagging\""),
        (
            "head_type",
            json!("multiple_choice"),
            "`head_type` is \"multiple_choice\"",
        ),
        ("layers", json!(3), "`layers` is 3"),
    ] {
        let dir = copied("flexible");
        edit(&dir.path().join("head_config.json"), |head| {
            head["config"][field] = value;
        });
        let error = classifier(3)
            .load_adapter("b", dir.path(), &methods())
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "no {said} in: {error}");
        assert!(error.contains("head_config.json"), "{error}");
    }
}

/// A head of a usual model class has no configuration of its own: the class says what it computes.
#[test]
fn a_head_of_another_model_class_is_refused() {
    let with_class = |class: Value| {
        let dir = copied("static");
        edit(&dir.path().join("head_config.json"), |head| {
            assert!(head["config"].is_null());
            head["model_class"] = class;
        });
        classifier(3)
            .load_adapter("a", dir.path(), &methods())
            .map(|_| ())
    };
    let error = with_class(json!("BertForTokenClassification"))
        .unwrap_err()
        .to_string();
    for word in [
        "BertForTokenClassification",
        "head_config.json",
        "ForSequenceClassification",
    ] {
        assert!(error.contains(word), "no {word} in: {error}");
    }
    with_class(json!("RobertaForSequenceClassification")).unwrap();
    with_class(Value::Null).unwrap();
}

/// A folder's adapter, loaded and saved: its tensors are in safetensors files.
fn saved_again(folder: &str, name: &str) -> tempfile::TempDir {
    let model = classifier(3)
        .load_adapter(name, copied(folder).path(), &methods())
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(name, dir.path()).unwrap();
    dir
}

#[test]
fn modules_saved_beside_a_head_stay_with_the_adapter() {
    let dir = saved_again("flexible", "b");
    let file = dir.path().join("adapter.safetensors");
    let mut tensors = peft_core::checkpoint::read_tensors(&file).unwrap();
    let pooler = "bert.pooler.dense";
    for (field, shape) in [("weight", vec![32, 32]), ("bias", vec![32])] {
        let values = vec![0.5_f32; shape.iter().product()];
        tensors.insert(format!("{pooler}.{field}"), TensorData::new(values, shape));
    }
    peft_core::checkpoint::write_tensors(&file, &tensors).unwrap();
    edit(&dir.path().join("adapter_config.json"), |config| {
        config["modules_to_save"] = json!([pooler]);
    });
    let model = classifier(3)
        .load_adapter("b", dir.path(), &methods())
        .unwrap();
    let again = tempfile::tempdir().unwrap();
    model.save_adapter("b", again.path()).unwrap();
    let config = json_of(&again.path().join("adapter_config.json"));
    assert_eq!(config["modules_to_save"], json!([pooler]));
    let keys = |name: &str| {
        let tensors = peft_core::checkpoint::read_tensors(&again.path().join(name)).unwrap();
        tensors.into_keys().collect::<Vec<_>>()
    };
    let found = keys("adapter.safetensors");
    assert!(found.contains(&format!("{pooler}.weight")), "{found:?}");
    assert_eq!(
        keys("model_head.safetensors"),
        ["heads.b.1.bias", "heads.b.1.weight"]
    );
}

#[test]
fn a_field_called_head_config_of_another_layout_is_kept() {
    let method = peft::reparameterization::LoraConfig::new(2).with_modules_to_save(["classifier"]);
    let model = classifier(3).attach("x", &method).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("x", dir.path()).unwrap();
    edit(&dir.path().join("adapter_config.json"), |config| {
        config["head_config"] = json!({"of": "someone"});
    });
    let model = classifier(3)
        .load_adapter("x", dir.path(), &methods())
        .unwrap();
    let again = tempfile::tempdir().unwrap();
    model.save_adapter("x", again.path()).unwrap();
    let json = |dir: &tempfile::TempDir| json_of(&dir.path().join("adapter_config.json"));
    assert_eq!(json(&again), json(&dir));
    let file = "adapter_model.safetensors";
    let bytes = |dir: &tempfile::TempDir| fs::read(dir.path().join(file)).unwrap();
    assert_eq!(bytes(&again), bytes(&dir));
    assert!(!again.path().join("head_config.json").exists());
}

#[test]
fn two_keys_for_one_tensor_are_refused() {
    for file in ["adapter.safetensors", "model_head.safetensors"] {
        let dir = saved_again("static", "a");
        let path = dir.path().join(file);
        let mut tensors = peft_core::checkpoint::read_tensors(&path).unwrap();
        let (key, data) = tensors.first_key_value().unwrap();
        let (key, data) = (key.clone(), data.clone());
        // As a model without a head has it; as a model below another has it.
        let other = match key.strip_prefix("bert.") {
            Some(bare) => bare.to_string(),
            None => format!("model.{key}"),
        };
        tensors.insert(other.clone(), data);
        peft_core::checkpoint::write_tensors(&path, &tensors).unwrap();
        let error = classifier(3)
            .load_adapter("a", dir.path(), &methods())
            .map(|_| ())
            .unwrap_err()
            .to_string();
        for word in [file, &format!("`{key}`"), &format!("`{other}`")] {
            assert!(error.contains(word), "no {word} in: {error}");
        }
    }
}

/// A folder of LoRA on one layer, with a pickled file of these bytes.
fn lora(bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["layer.0.attention.self.query"],
    });
    fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    fs::write(dir.path().join("adapter_model.bin"), bytes).unwrap();
    dir
}

fn read(name: &str) -> Vec<u8> {
    fs::read(Path::new(FILES).join(name)).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    let dir = lora(bytes);
    let loaded = encoder().load_adapter("x", dir.path(), &methods());
    let error = loaded.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("adapter_model.bin"), "{error}");
    error
}

#[test]
fn the_layout_before_torch_1_6_is_read() {
    let dir = lora(&read("legacy.bin"));
    let model = encoder().load_adapter("x", dir.path(), &methods()).unwrap();
    let states = peft_core::state::AdapterState::adapter_tensors(&model, "x").unwrap();
    let b = "base_model.model.encoder.layer.0.attention.self.query.lora_B.weight";
    let first: Vec<f32> = states[b].iter::<f32>().take(4).collect();
    // It is a transposed view in the file.
    assert_eq!(first, [0.0, 32.0, 1.0, 33.0]);
}

/// A pickle that calls `os.system` in Python.
fn program(file: &Path) -> Vec<u8> {
    let command = format!("touch {}", file.display());
    format!("cos\nsystem\n(S'{command}'\ntR.").into_bytes()
}

/// An archive of one entry, as it is or said to be compressed.
fn archive(name: &str, content: &[u8], method: u16) -> Vec<u8> {
    let mut crc = 0xffff_ffff_u32;
    for byte in content {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    let common = |bytes: &mut Vec<u8>| {
        bytes.extend([20, 0, 0, 0]);
        bytes.extend(method.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend((!crc).to_le_bytes());
        let size = u32::try_from(content.len()).unwrap();
        bytes.extend(size.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        bytes.extend([0; 2]);
    };
    let mut bytes = b"PK\x03\x04".to_vec();
    common(&mut bytes);
    bytes.extend(name.as_bytes());
    bytes.extend(content);
    let directory = bytes.len();
    bytes.extend(b"PK\x01\x02\x14\x00");
    common(&mut bytes);
    bytes.extend([0; 14]);
    bytes.extend(name.as_bytes());
    let length = bytes.len() - directory;
    bytes.extend(b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00");
    bytes.extend(u32::try_from(length).unwrap().to_le_bytes());
    bytes.extend(u32::try_from(directory).unwrap().to_le_bytes());
    bytes.extend([0; 2]);
    bytes
}

#[test]
fn nothing_in_a_file_is_run() {
    let dir = tempfile::tempdir().unwrap();
    let touched = dir.path().join("touched");
    let program = program(&touched);
    refusal(&program);
    refusal(&archive("a/data.pkl", &program, 0));
    // As a value among tensors.
    let mut inside = b"(S'a'\n".to_vec();
    inside.extend(&program[..program.len() - 1]);
    inside.extend(b"d.");
    refusal(&archive("a/data.pkl", &inside, 0));
    assert!(!touched.exists());
}

#[test]
fn what_would_take_more_memory_than_an_adapter_can_is_refused() {
    let pickle = b"}.";
    let whole = refusal(&archive("a/data.pkl", pickle, 0));
    assert!(whole.contains("missing"), "an empty file: {whole}");
    let compressed = refusal(&archive("a/data.pkl", pickle, 8));
    assert!(compressed.contains("compressed"), "{compressed}");
    // A value of each byte.
    let mut values = vec![b'N'; (1 << 22) + 1];
    values.push(b'.');
    let large = refusal(&archive("a/data.pkl", &values, 0));
    assert!(large.contains("4194304"), "{large}");
    let mut stream = b"\x80\x02".to_vec();
    stream.resize((1 << 25) + 1, b'N');
    let large = refusal(&stream);
    assert!(large.contains("33554432"), "{large}");
    // A number that says it is a GiB of them.
    let expanded = refusal(&read("expanded.bin"));
    assert!(expanded.contains("bytes, and the file has"), "{expanded}");
    for error in [compressed, large, expanded] {
        assert!(error.contains("safetensors.torch.save_file"), "{error}");
    }
}

#[test]
fn a_damaged_file_is_refused_or_read() {
    for file in ["legacy.bin", "static/pytorch_adapter.bin", "expanded.bin"] {
        let good = read(file);
        for end in (0..good.len()).step_by(61) {
            refusal(&good[..end]);
        }
        for at in (0..good.len()).step_by(29) {
            for bit in [0, 3, 7] {
                let mut damaged = good.clone();
                damaged[at] ^= 1 << bit;
                let dir = lora(&damaged);
                let before = encoder();
                if let Err(error) = before.load_adapter("x", dir.path(), &methods()) {
                    let error = error.to_string();
                    assert!(error.contains("adapter_model.bin"), "{file}, {at}: {error}");
                }
            }
        }
    }
}

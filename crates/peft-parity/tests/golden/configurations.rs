//! What a configuration of Hugging Face PEFT's may say: what is kept of it, and what is refused.

use std::path::Path;

use peft_core::PeftModule;
use peft_models::Bert;
use peft_parity::golden;
use peft_reparameterization::METHODS;

use crate::{BERT, LLAMA};

const CASES: &str = "../peft-reparameterization/tests/golden";
#[test]
fn what_is_not_built_yet_is_refused_and_not_misread() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT, device).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let case = Path::new(CASES).join("lora");
    let name = "adapter_model.safetensors";
    std::fs::copy(case.join(name), dir.path().join(name)).unwrap();
    let config = std::fs::read_to_string(case.join("adapter_config.json")).unwrap();
    for (field, value) in [
        ("use_qalora", "true"),
        ("layer_replication", "[[0, 2], [1, 2]]"),
    ] {
        let start = config.rfind('}').unwrap();
        let config = format!("{}, \"{field}\": {value} }}", &config[..start]);
        std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
        let refused = base.load_adapter("x", dir.path(), METHODS).unwrap_err();
        assert!(refused.to_string().contains(field), "{refused}");
    }
    // What is refused by name is no failure.
    let refused = golden::Problem::from(base.load_adapter("x", dir.path(), METHODS).unwrap_err());
    assert!(matches!(refused, golden::Problem::Refused(_)), "{refused}");
}

#[test]
fn what_upstream_refuses_of_a_checkpoint_is_refused() {
    let case = Path::new(CASES).join("lora");
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = ("adapter_config.json", "adapter_model.safetensors");
    std::fs::copy(case.join(file), dir.path().join(file)).unwrap();
    let text = std::fs::read_to_string(case.join(config)).unwrap();
    let mut fields: serde_json::Value = serde_json::from_str(&text).unwrap();
    fields["layers_pattern"] = "layer".into();
    std::fs::write(dir.path().join(config), fields.to_string()).unwrap();
    let base = Bert::load(BERT, &peft_core::device::cpu_devices()[0].1);
    let error = base
        .unwrap()
        .load_adapter("a", dir.path(), METHODS)
        .unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("`layers_pattern`") && error.contains("layers_to_transform"),
        "{error}"
    );
}

#[test]
fn unknown_fields_of_a_configuration_are_written_back() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT, device).unwrap();
    let case = Path::new(CASES).join("lora");
    let model = base.load_adapter("x", &case, METHODS).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("x", dir.path()).unwrap();
    let read = |dir: &Path| {
        let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let (theirs, ours) = (read(&case), read(dir.path()));
    for (field, value) in theirs.as_object().unwrap() {
        match value.as_f64() {
            // 12 and 12.0 are one number to upstream.
            Some(number) => assert_eq!(ours[field].as_f64(), Some(number), "{field}"),
            None => assert_eq!(&ours[field], value, "{field}"),
        }
    }
}

#[test]
fn a_module_saved_whole_gets_no_adapter_besides() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT, device).unwrap();
    let config = peft_reparameterization::LoraConfig::new(4).with_modules_to_save(["pooler"]);
    let model = base.attach("x", &config).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("x", dir.path()).unwrap();
    let bytes = std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let pooler: Vec<_> = file
        .names()
        .into_iter()
        .filter(|key| key.contains("pooler"))
        .collect();
    assert_eq!(pooler.len(), 2, "{pooler:?}");
    assert!(pooler.iter().all(|key| !key.contains("lora")), "{pooler:?}");
}

#[test]
fn absurd_sizes_of_a_configuration_cost_nothing() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT, device).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let case = Path::new(CASES).join("lora");
    let name = "adapter_model.safetensors";
    std::fs::copy(case.join(name), dir.path().join(name)).unwrap();
    let config = std::fs::read_to_string(case.join("adapter_config.json")).unwrap();
    let config = config.replace("\"r\": 4", "\"r\": 100000000000");
    std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    let refused = base
        .load_adapter("x", dir.path(), METHODS)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("shape"), "{refused}");
}

/// Where upstream's merged output is not its unmerged one, somebody has to say which is right.
#[test]
fn a_case_that_is_not_named_has_no_excuse() {
    let base = Path::new(LLAMA);
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let dir = tempfile::tempdir().unwrap();
    let (named, other) = ("lora_embedding", "another");
    for name in [named, other] {
        let case = dir.path().join(name);
        std::fs::create_dir(&case).unwrap();
        for file in std::fs::read_dir(Path::new(CASES).join("llama").join(named)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), case.join(file.file_name())).unwrap();
        }
    }
    let measure = |name: &str| golden::measure(base, &dir.path().join(name), METHODS, device);
    assert!(measure(named).is_ok());
    let refused = measure(other).unwrap_err().to_string();
    assert!(
        refused.contains(other) && refused.contains("UPSTREAM_MERGES_WRONG"),
        "{refused}"
    );
}

/// A network deeper than the file's, or less deep, is another network.
#[test]
fn a_depth_that_is_not_the_files_is_refused() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load("../peft-additive/tests/golden/bert_more/base", device).unwrap();
    let case = Path::new(CASES).join("bert_more/peanut_deep");
    let dir = tempfile::tempdir().unwrap();
    let name = "adapter_model.safetensors";
    std::fs::copy(case.join(name), dir.path().join(name)).unwrap();
    let config = std::fs::read_to_string(case.join("adapter_config.json")).unwrap();
    for (depth, named) in [
        ("100000000000", "peanut_encoders.2.weight"),
        ("1", "peanut_decoders.1.weight"),
    ] {
        let other = config.replace("\"depth\": 2", &format!("\"depth\": {depth}"));
        assert_ne!(other, config);
        std::fs::write(dir.path().join("adapter_config.json"), other).unwrap();
        let refused = base.load_adapter("x", dir.path(), METHODS).unwrap_err();
        assert!(refused.to_string().contains(named), "{refused}");
    }
}

//! What a file or a configuration says of a tied head, and what is refused.

use burn::module::Module as _;
use peft::core::PeftModule;
use peft::core::device::cpu_devices;
use peft::reparameterization::{LORA, LoraConfig, METHODS};
use peft_models::{Llama, LlamaConfig};

use crate::{HEAD, TABLE, base, farthest, logits, lora, read, trained, write};

#[test]
fn a_file_may_lack_the_heads_copy_and_not_contradict_it() {
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    let base = base(&device);
    let saved = lora(["q_proj"])
        .with_ensure_weight_tying(true)
        .with_modules_to_save(["embed_tokens"]);
    let target = lora(["lm_head"]).with_ensure_weight_tying(true);
    for (config, of_head) in [
        (saved, vec![HEAD]),
        (
            target,
            vec![
                "base_model.model.lm_head.lora_A.weight",
                "base_model.model.lm_head.lora_B.weight",
            ],
        ),
    ] {
        let model = trained(base.attach("x", &config).unwrap());
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter("x", dir.path()).unwrap();
        let file = read(dir.path(), "adapter_model.safetensors");
        let mut without = file.clone();
        for key in &of_head {
            assert!(without.remove(*key).is_some(), "{key} is written");
        }
        write(dir.path(), &without);
        let loaded = base.load_adapter("x", dir.path(), METHODS).unwrap();
        let distance = farthest(&logits(&loaded.valid()), &logits(&model.valid()));
        assert!(distance < 1e-5, "the head does not follow: {distance}");
        let mut other = file.clone();
        other.get_mut(of_head[0]).unwrap().1[..4].copy_from_slice(&9.0_f32.to_le_bytes());
        write(dir.path(), &other);
        let error = base
            .load_adapter("x", dir.path(), METHODS)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(of_head[0]) && error.contains("tied"),
            "{error}"
        );
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let (_, device) = cpu_devices().remove(0);
    let base = base(&device);
    let tying = |config: LoraConfig| config.with_ensure_weight_tying(true);
    let refused = |model: &Llama, config: &LoraConfig, says: &[&str]| {
        let error = model.attach("x", config).unwrap_err().to_string();
        assert!(says.iter().all(|says| error.contains(says)), "{error}");
    };
    let says = ["ensure_weight_tying", "use_dora", "tied head"];
    refused(&base, &tying(lora(["lm_head"])).with_use_dora(true), &says);
    let says = ["ensure_weight_tying", "lora_bias"];
    refused(
        &base,
        &tying(lora(["embed_tokens"])).with_lora_bias(true),
        &says,
    );
    let says = ["ensure_weight_tying", "ranks"];
    refused(
        &base,
        &tying(lora(["lm_head"])).with_rank_pattern("lm_head", 2),
        &says,
    );
    let says = ["trainable_token_indices", "lm_head"];
    refused(
        &base,
        &lora(["lm_head"]).with_trainable_token_indices([1]),
        &says,
    );
    let says = ["trainable_token_indices", "modules_to_save"];
    let saved = lora(["q_proj"])
        .with_trainable_token_indices([1])
        .with_modules_to_save(["embed_tokens"]);
    refused(&base, &saved, &says);
    let mut config = LlamaConfig::tiny();
    config.tie_word_embeddings = false;
    let untied = config.init(&device);
    let says = ["ensure_weight_tying", "tied head"];
    refused(&untied, &tying(lora(["lm_head"])), &says);
}

/// Lists of rows by module, as upstream has them.
#[test]
fn rows_of_table_and_head_are_the_same_rows() {
    let (_, device) = cpu_devices().remove(0);
    let base = base(&device);
    let attach = |lists: &str| {
        let json = format!(
            r#"{{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "trainable_token_indices": {lists}}}"#
        );
        let json = serde_json::from_str(&json).unwrap();
        let method = (LORA.parse)(&json).unwrap();
        base.attach("x", method.as_ref())
    };
    let both = attach(r#"{"embed_tokens": [1, 2], "lm_head": [1, 2]}"#).unwrap();
    let one = attach("[1, 2]").unwrap();
    assert_eq!(both.counts(), one.counts());
    for lists in [
        r#"{"embed_tokens": [1, 2], "lm_head": [1, 3]}"#,
        r#"{"lm_head": [1, 2]}"#,
    ] {
        let error = attach(lists).unwrap_err().to_string();
        assert!(error.contains("tied head `lm_head`"), "{error}");
    }
}

/// Tables that are not the model's, beside an adapter.
#[test]
fn other_tables_in_a_file_are_told_by_what_they_are() {
    let (_, device) = cpu_devices().remove(0);
    let base = base(&device);
    let model = base.attach("x", &lora(["q_proj"])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("x", dir.path()).unwrap();
    let file = read(dir.path(), "adapter_model.safetensors");
    let with = |key: &str, rows: usize, value: f32| {
        let mut file = file.clone();
        let data: Vec<u8> = value.to_le_bytes().repeat(rows * 32);
        file.insert(key.to_string(), (vec![rows, 32], data));
        write(dir.path(), &file);
        base.load_adapter("x", dir.path(), METHODS)
            .unwrap_err()
            .to_string()
    };
    for key in [HEAD, TABLE, "base_model.model.lm_head.base_layer.weight"] {
        let error = with(key, 103, 0.5);
        assert!(
            error.contains("103 rows") && error.contains("101"),
            "{error}"
        );
    }
    let error = with(HEAD, 101, 0.5);
    assert!(
        error.contains("tied head `lm_head`") && error.contains("modules_to_save"),
        "{error}"
    );
    let error = with(TABLE, 101, 0.5);
    assert!(error.contains("new tokens"), "{error}");
}

//! Folders that are written: what of the source's is kept, and what an error leaves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use peft_core::device::cpu_devices;
use peft_core::ops::quantized::{QuantizedMatrix, QuantizedWeight};
use peft_core::quantize::QuantizedModule as _;
use peft_core::quantize::{QuantizedLayer, RawTensor, WeightQuantizer};
use peft_core::{Error, PeftModule as _};
use peft_models::{
    ChatTemplate, ExportConfig, ExportDtype, GenerateConfig, Llama, LlamaConfig, LlamaTokenizer,
    LoadError, Message, StoppedBy,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/generate/model")
}

fn object(path: &Path) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The golden model's folder with fields set in its files.
fn folder(fields: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    for (file, more) in fields {
        let path = dir.path().join(file);
        let mut all = if path.exists() {
            object(&path)
        } else {
            Map::new()
        };
        all.extend(more.as_object().unwrap().clone());
        std::fs::write(&path, serde_json::to_string_pretty(&all).unwrap()).unwrap();
    }
    dir
}

/// All files by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect()
}

fn assert_same_fields(from: &Path, to: &Path, name: &str) {
    let [expected, found] = [from, to].map(|dir| object(&dir.join(name)));
    for (field, value) in &expected {
        assert_eq!(found.get(field), Some(value), "{name}: {field}");
    }
    let new: Vec<&String> = found
        .keys()
        .filter(|key| !expected.contains_key(*key))
        .collect();
    assert!(new.is_empty(), "{name} has got {new:?}");
}

#[test]
fn what_a_folder_says_is_said_by_its_export() -> Outcome {
    let device = cpu_devices().remove(0).1;
    let source = folder(&[
        (
            "tokenizer_config.json",
            json!({ "pad_token": "<|end|>", "padding_side": "left", "model_max_length": 1024,
                    "additional_special_tokens": ["<|start|>"],
                    "added_tokens_decoder": { "0": { "content": "<|begin|>", "special": true } } }),
        ),
        (
            "generation_config.json",
            json!({ "pad_token_id": 2, "top_p": 0.9, "repetition_penalty": 1.1 }),
        ),
        (
            "config.json",
            json!({ "pad_token_id": 2, "rope_parameters": { "rope_type": "default", "rope_theta": 10000.0 },
                    "transformers_version": "5.0.0", "own": [1, { "a": null }] }),
        ),
        ("special_tokens_map.json", json!({ "pad_token": "<|end|>" })),
    ]);
    let path = source.path().join("tokenizer.json");
    let mut tokenizer = object(&path);
    tokenizer["padding"] = json!({
        "strategy": { "Fixed": 8 }, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 2,
        "pad_type_id": 0, "pad_token": "<|end|>"
    });
    std::fs::write(&path, serde_json::to_string(&tokenizer)?)?;

    let model = Llama::load(source.path(), &device)?;
    let tokenizer = LlamaTokenizer::load(source.path())?;
    let out = tempfile::tempdir()?;
    let out = out.path().join("new/folder");
    model.export(&out, Some(&tokenizer))?;
    let [from, to] = [source.path(), &out].map(files);
    assert!(from.keys().eq(to.keys()), "{:?}", to.keys());
    for name in from.keys().filter(|name| *name != "model.safetensors") {
        assert_same_fields(source.path(), &out, name);
    }
    // And again from what was written.
    let again = Llama::load(&out, &device)?;
    assert_eq!(again.config(), model.config());
    let second = tempfile::tempdir()?;
    again.export(second.path(), Some(&LlamaTokenizer::load(&out)?))?;
    assert_eq!(files(second.path()), to);
    Ok(())
}

#[test]
fn a_template_in_a_file_of_its_own_stays_there() -> Outcome {
    let source = folder(&[]);
    std::fs::write(source.path().join("chat_template.jinja"), "{{ 'hi' }}")?;
    let tokenizer = LlamaTokenizer::load(source.path())?;
    let out = folder(&[]);
    tokenizer.save(out.path())?;
    let written = std::fs::read_to_string(out.path().join("chat_template.jinja"))?;
    assert_eq!(written, "{{ 'hi' }}");
    tokenizer.with_chat_template("new").save(out.path())?;
    assert_eq!(
        LlamaTokenizer::load(out.path())?.chat_template(),
        Some("new")
    );
    // A tokenizer without one does not leave the other's beside it.
    LlamaTokenizer::load(golden())?.save(out.path())?;
    assert!(!out.path().join("chat_template.jinja").exists());
    assert_eq!(
        LlamaTokenizer::load(out.path())?.chat_template(),
        LlamaTokenizer::load(golden())?.chat_template()
    );
    Ok(())
}

/// A base model that is trained on chats.
#[test]
fn the_token_that_ends_a_turn_ends_generation_and_is_exported() -> Outcome {
    let device = cpu_devices().remove(0).1;
    let source = folder(&[("generation_config.json", json!({ "eos_token_id": 0 }))]);
    let model = Llama::load(source.path(), &device)?;
    let base = LlamaTokenizer::load(source.path())?;
    let template = ChatTemplate::new("<|start|>{role}\n", "<|end|>\n");
    let tokenizer = base.clone().with_chat(&template)?;
    assert_eq!((base.eos(), tokenizer.eos()), (&[0][..], &[0, 2][..]));
    let out = tempfile::tempdir()?;
    model.export(out.path(), Some(&tokenizer))?;
    for file in ["generation_config.json", "config.json"] {
        assert_eq!(
            object(&out.path().join(file))["eos_token_id"],
            json!([0, 2]),
            "{file}"
        );
    }
    let again = LlamaTokenizer::load(out.path())?;
    let chat = [Message::user("the cat")];
    assert_eq!(
        again.chat(&chat)?,
        format!("<|begin|>{}", template.render(&chat, true))
    );
    assert_eq!(again.eos(), [0, 2]);
    // Generation ends at a token that the tokenizer was given, whatever the files say.
    let greedy = GenerateConfig::default().with_max_new_tokens(4);
    let prompt = [0, 260, 261];
    let next = model.generate_ids(&prompt, &greedy.clone().with_eos_token_id([]))?[0];
    let vocabulary = object(&source.path().join("tokenizer.json"))["model"]["vocab"].clone();
    let mut tokens = vocabulary.as_object().unwrap().iter();
    let (token, _) = tokens
        .find(|(_, id)| id.as_u64() == Some(next.into()))
        .unwrap();
    let stopping = base.with_end_tokens([token])?;
    let reply = model.generate_from(&stopping, &prompt, &greedy, |_| {})?;
    assert_eq!((reply.ids, reply.stopped_by), (vec![next], StoppedBy::Eos));
    Ok(())
}

fn dtypes(dir: &Path) -> Vec<Dtype> {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut found: Vec<Dtype> = file.iter().map(|(_, view)| view.dtype()).collect();
    found.dedup();
    found
}

#[test]
fn weights_have_the_number_format_of_their_source_or_the_one_asked_for() -> Outcome {
    let device = cpu_devices().remove(0).1;
    let half = folder(&[]);
    let model = Llama::load(half.path(), &device)?;
    let config = ExportConfig::new().with_dtype(ExportDtype::BF16);
    model.export_with(half.path(), None, &config)?;
    assert_eq!(dtypes(half.path()), [Dtype::BF16]);
    assert_eq!(
        object(&half.path().join("config.json"))["dtype"],
        "bfloat16"
    );
    // What is in 16 bits stays so, to the last bit.
    let before = files(half.path());
    Llama::load(half.path(), &device)?.export(half.path(), None)?;
    assert_eq!(files(half.path()), before);
    let config = ExportConfig::new().with_dtype(ExportDtype::F32);
    Llama::load(half.path(), &device)?.export_with(half.path(), None, &config)?;
    assert_eq!(dtypes(half.path()), [Dtype::F32]);
    assert_eq!(object(&half.path().join("config.json"))["dtype"], "float32");

    // `torch_dtype`, as older files have it.
    let old = folder(&[]);
    let path = old.path().join("config.json");
    let mut fields = object(&path);
    fields.remove("dtype");
    fields.insert("torch_dtype".into(), "float16".into());
    std::fs::write(&path, serde_json::to_string(&fields)?)?;
    let model = Llama::load(old.path(), &device)?;
    model.export(old.path(), None)?;
    assert_eq!(dtypes(old.path()), [Dtype::F16]);
    assert_same_fields(&golden(), old.path(), "generation_config.json");
    let written = object(&path);
    assert_eq!(written["torch_dtype"], "float16");
    assert!(!written.contains_key("dtype"));

    // A fresh model has no source.
    let fresh = tempfile::tempdir()?;
    Llama::tiny(&device).export(fresh.path(), None)?;
    assert_eq!(dtypes(fresh.path()), [Dtype::F32]);
    Ok(())
}

#[test]
fn a_value_beyond_the_format_leaves_the_folder_as_it_was() -> Outcome {
    let device = cpu_devices().remove(0).1;
    let dir = folder(&[]);
    let before = files(dir.path());
    let mut model = Llama::tiny(&device);
    model.model.norm.gamma = model.model.norm.gamma.map(|gamma| gamma * 1e6);
    let config = ExportConfig::new().with_dtype(ExportDtype::F16);
    let tokenizer = LlamaTokenizer::load(golden())?;
    let error = model
        .export_with(dir.path(), Some(&tokenizer), &config)
        .unwrap_err();
    assert!(matches!(error, LoadError::Packing(_)), "{error}");
    assert!(error.to_string().contains("model.norm.weight"), "{error}");
    assert_eq!(files(dir.path()), before);
    Ok(())
}

/// Halves in place of weights, of which the last matrix cannot be written.
struct Late;

#[derive(Debug)]
struct Halves([usize; 2]);

impl QuantizedMatrix for Halves {
    fn shape(&self) -> [usize; 2] {
        self.0
    }

    fn decode(&self, _first: usize, values: &mut [f32]) {
        values.fill(0.5);
    }

    fn bytes(&self) -> usize {
        1
    }

    fn format(&self) -> &'static str {
        "halves"
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl WeightQuantizer for Late {
    fn pack(
        &self,
        layer: QuantizedLayer<'_>,
        _: &[f32],
    ) -> peft_core::Result<Option<QuantizedWeight>> {
        Ok(Some(QuantizedWeight::new(Halves(layer.shape))))
    }

    fn write_parts(
        &self,
        layer: &str,
        _: &QuantizedWeight,
    ) -> peft_core::Result<Option<BTreeMap<String, RawTensor>>> {
        if layer.contains("layers.1.mlp") {
            return Err(Error::Packing {
                layer: layer.to_string(),
                reason: "too late".to_string(),
            });
        }
        let part = RawTensor {
            dtype: burn::tensor::DType::U8,
            shape: vec![1],
            bytes: vec![1],
        };
        Ok(Some(BTreeMap::from([("weight".to_string(), part)])))
    }

    fn quantization_config(&self, _: &[String]) -> Option<Value> {
        Some(json!({}))
    }
}

#[test]
fn an_error_leaves_the_folder_as_it_was() -> Outcome {
    let device = cpu_devices().remove(0).1;
    let dir = folder(&[]);
    let before = files(dir.path());
    let quantized = Llama::tiny(&device).pack_weights(&Late)?;
    let tokenizer = LlamaTokenizer::load(golden())?;
    let error = quantized.export_quantized(dir.path(), Some(&tokenizer), &Late);
    assert!(error.unwrap_err().to_string().contains("too late"));
    assert_eq!(files(dir.path()), before);
    // Where a file cannot get its name, no other one has got its own.
    let blocked = folder(&[]);
    let before = files(blocked.path());
    std::fs::create_dir_all(blocked.path().join(".config.json.pending/a"))?;
    let other = Llama::scrambled(&LlamaConfig::tiny(), &device);
    let error = other.export(blocked.path(), Some(&tokenizer)).unwrap_err();
    assert!(matches!(error, LoadError::Write { .. }), "{error}");
    std::fs::remove_dir_all(blocked.path().join(".config.json.pending"))?;
    let mut after = files(blocked.path());
    after.retain(|name, _| !name.ends_with(".pending"));
    assert_eq!(after, before);
    Llama::load(blocked.path(), &device)?;
    Ok(())
}

/// As a kill leaves it between the old set and the new one: `peft_core::files` says which steps there are.
#[test]
fn an_interrupted_export_is_read_whole() -> Outcome {
    let device = cpu_devices().remove(0).1;
    let old = folder(&[]);
    let new = tempfile::tempdir()?;
    let tokenizer = LlamaTokenizer::load(golden())?.with_end_tokens(["<|start|>"])?;
    let mut config = LlamaConfig::load(golden())?;
    config.max_position_embeddings = 99;
    let model = Llama::scrambled(&config, &device);
    model.export(new.path(), Some(&tokenizer))?;
    let expected = model.layout().params.len();
    for (name, bytes) in files(new.path()) {
        std::fs::write(old.path().join(format!(".{name}.pending")), bytes)?;
    }
    // The old one holds.
    assert_ne!(
        Llama::load(old.path(), &device)?
            .config()
            .max_position_embeddings,
        99
    );
    assert_eq!(LlamaTokenizer::load(old.path())?.eos(), [2]);
    std::fs::remove_file(old.path().join("config.json"))?;
    // The new one does, whichever files have their names.
    for name in [
        "",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
    ] {
        if !name.is_empty() {
            let pending = old.path().join(format!(".{name}.pending"));
            std::fs::rename(pending, old.path().join(name))?;
        }
        let loaded = Llama::load(old.path(), &device)?;
        assert_eq!(loaded.config().max_position_embeddings, 99);
        assert_eq!(loaded.layout().params.len(), expected);
        let [found, wanted] = [&loaded, &model].map(|model| {
            let gamma = model.model.norm.gamma.val().into_data();
            gamma.try_to_vec::<f32>().unwrap()
        });
        assert_eq!(found, wanted);
        assert_eq!(LlamaTokenizer::load(old.path())?.eos(), [1]);
        assert_eq!(
            GenerateConfig::load(old.path())?.eos_token_id,
            Some(vec![1])
        );
    }
    // And the next one ends it.
    model.export(old.path(), Some(&tokenizer))?;
    assert_eq!(files(old.path()), files(new.path()));
    Ok(())
}

/// Readers that prefer an index would load the old shards.
#[test]
fn shards_of_an_older_model_do_not_stay_beside_the_new_one() -> Outcome {
    let device = cpu_devices().remove(0).1;
    let dir = folder(&[]);
    let shard = "model-00001-of-00001.safetensors";
    std::fs::rename(dir.path().join("model.safetensors"), dir.path().join(shard))?;
    let index = json!({ "weight_map": { "a": shard, "b": "mine.safetensors", "c": "../model-c.safetensors" } });
    let index_file = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index_file, index.to_string())?;
    std::fs::write(dir.path().join("mine.safetensors"), "")?;
    let model = Llama::tiny(&device);
    model.export(dir.path(), None)?;
    // An index that names files elsewhere names none.
    assert!(!index_file.exists() && dir.path().join(shard).exists());
    let index = json!({ "weight_map": { "a": shard, "b": "mine.safetensors" } });
    std::fs::write(&index_file, index.to_string())?;
    model.export(dir.path(), None)?;
    assert!(!index_file.exists() && !dir.path().join(shard).exists());
    assert!(dir.path().join("mine.safetensors").exists());
    Llama::load(dir.path(), &device)?;
    Ok(())
}

#[cfg(unix)]
#[test]
fn permissions_are_those_of_any_new_file() -> Outcome {
    use std::os::unix::fs::PermissionsExt as _;
    let device = cpu_devices().remove(0).1;
    let dir = tempfile::tempdir()?;
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "")?;
    let out = dir.path().join("out");
    let tokenizer = LlamaTokenizer::load(golden())?;
    Llama::load(golden(), &device)?.export(&out, Some(&tokenizer))?;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for entry in std::fs::read_dir(&out)? {
        let path = entry?.path();
        assert_eq!(mode(&path), mode(&plain), "{}", path.display());
    }
    Ok(())
}

#[test]
fn weights_and_tokenizers_in_other_forms_are_named_with_a_way_out() -> Outcome {
    let device = cpu_devices().remove(0).1;
    let dir = folder(&[]);
    std::fs::rename(
        dir.path().join("model.safetensors"),
        dir.path().join("pytorch_model.bin"),
    )?;
    let error = Llama::load(dir.path(), &device).unwrap_err().to_string();
    assert!(
        error.contains("pytorch_model.bin") && error.contains("save_pretrained"),
        "{error}"
    );
    std::fs::remove_file(dir.path().join("tokenizer.json"))?;
    std::fs::write(dir.path().join("tokenizer.model"), "")?;
    let error = LlamaTokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("tokenizer.model") && error.contains("AutoTokenizer"),
        "{error}"
    );
    Ok(())
}

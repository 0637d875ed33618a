//! Whole models that transformers saved in bitsandbytes' 4 bits, and such as nobody should load.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};

use peft_core::device::cpu_devices;
use peft_core::quantize::QuantizedModule as _;
use peft_models::{Llama, LlamaLoader, LoadError};
use peft_quantization::{QuantizationConfig, Tables};
use peft_testing::{farthest, largest};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const WEIGHTS: &str = "model.safetensors";
/// A quantized layer of both goldens.
const LAYER: &str = "model.layers.0.self_attn.q_proj";

fn golden(kind: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    dir.join(format!("llama_{kind}"))
}

fn quantizer(dir: &Path) -> QuantizationConfig {
    let config = QuantizationConfig::load(dir).unwrap();
    config.with_tables(Tables::Float32)
}

fn try_load(dir: &Path, device: &Device) -> Result<Llama, LoadError> {
    let quantizer = quantizer(dir);
    LlamaLoader::new(dir)
        .with_quantizer(&quantizer)
        .load(device)
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn tensors(file: &Path) -> BTreeMap<String, Part> {
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let part = |view: &TensorView<'_>| Part {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.iter()
        .map(|(name, view)| (name.to_string(), part(&view)))
        .collect()
}

fn write(tensors: &BTreeMap<String, Part>, file: &Path) {
    let views = tensors.iter().map(|(name, part)| {
        let view = TensorView::new(part.dtype, part.shape.clone(), &part.bytes).unwrap();
        (name.clone(), view)
    });
    std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// A copy of the golden's folder without its weights.
fn without_weights(kind: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = golden(kind).join("config.json");
    std::fs::copy(config, dir.path().join("config.json")).unwrap();
    dir
}

/// That the model's logits are those of upstream's.
fn assert_upstreams(llama: &Llama, kind: &str, device: &Device) {
    let io = tensors(&golden(kind).join("io.safetensors"));
    let ids = io["input_ids"].bytes.as_chunks::<8>().0.iter();
    let ids: Vec<i64> = ids.map(|bytes| i64::from_le_bytes(*bytes)).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [2, 10]), device);
    let logits = io["logits"].bytes.as_chunks::<4>().0.iter();
    let logits: Vec<f32> = logits.map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let largest = largest(logits.iter().copied());
    let found = llama.forward(ids, None).into_data();
    let error = farthest(found.iter::<f32>(), logits);
    assert!(
        error <= 2e-5 * largest,
        "{kind}: {error} from upstream's, the largest is {largest}"
    );
}

#[test]
fn logits_are_upstreams() {
    for (_, device) in cpu_devices() {
        for (kind, layers) in [("nf4", 14), ("fp4", 6)] {
            let llama = try_load(&golden(kind), &device).unwrap();
            let quantized = llama.quantized_weights();
            assert_eq!(quantized.len(), layers);
            assert!(quantized.iter().all(|(_, rows)| rows.format() == kind));
            assert_upstreams(&llama, kind, &device);
        }
    }
}

#[test]
fn parts_may_be_in_different_files() {
    let device = cpu_devices().remove(0).1;
    let dir = without_weights("nf4");
    let mut files = [BTreeMap::new(), BTreeMap::new()];
    let all = tensors(&golden("nf4").join(WEIGHTS));
    for (index, (name, part)) in all.into_iter().enumerate() {
        files[index % 2].insert(name, part);
    }
    let mut map = BTreeMap::new();
    for (file, tensors) in ["a.safetensors", "b.safetensors"].iter().zip(&files) {
        write(tensors, &dir.path().join(file));
        map.extend(tensors.keys().map(|name| (name.clone(), *file)));
    }
    let index = json!({ "weight_map": map }).to_string();
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let llama = try_load(dir.path(), &device).unwrap();
    assert_upstreams(&llama, "nf4", &device);
}

/// What is written is what upstream wrote, so upstream reads it.
#[test]
fn what_was_read_is_written() {
    let device = cpu_devices().remove(0).1;
    for kind in ["nf4", "fp4"] {
        let dir = tempfile::tempdir().unwrap();
        let llama = try_load(&golden(kind), &device).unwrap();
        llama
            .export_quantized(dir.path(), None, &quantizer(&golden(kind)))
            .unwrap();
        let written = tensors(&dir.path().join(WEIGHTS));
        let expected = tensors(&golden(kind).join(WEIGHTS));
        assert!(written.keys().eq(expected.keys()), "{kind}");
        for (name, part) in &written {
            let expected = &expected[name];
            if name.contains("quant_state") {
                let [state, expected]: [Value; 2] =
                    [part, expected].map(|part| serde_json::from_slice(&part.bytes).unwrap());
                assert_eq!(state, expected, "{name}");
            } else if part.dtype == expected.dtype {
                assert_eq!(part, expected, "{name}");
            } else {
                // The golden's `bnb_4bit_quant_storage` is bfloat16.
                assert_eq!((kind, &part.bytes), ("fp4", &expected.bytes), "{name}");
            }
        }
        let settings = |dir: &Path| json(&dir.join("config.json"))["quantization_config"].clone();
        let mut expected = settings(&golden(kind));
        expected["bnb_4bit_quant_storage"] = "uint8".into();
        assert_eq!(settings(dir.path()), expected, "{kind}");
        let again = try_load(dir.path(), &device).unwrap();
        assert_upstreams(&again, kind, &device);
    }
}

#[test]
fn a_packer_of_another_kind_does_not_do() {
    let device = cpu_devices().remove(0).1;
    let dir = golden("nf4");
    let int8 = QuantizationConfig::int8();
    let loader = LlamaLoader::new(&dir);
    for refused in [
        loader.load(&device).unwrap_err(),
        loader.with_quantizer(&int8).load(&device).unwrap_err(),
    ] {
        let refused = refused.to_string();
        assert!(refused.contains("QuantizationConfig::load"), "{refused}");
    }
    let out = tempfile::tempdir().unwrap();
    let llama = try_load(&dir, &device).unwrap();
    let refused = llama.export_quantized(out.path(), None, &QuantizationConfig::fp4());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("bnb_4bit_quant_type"), "{refused}");
    let dense = Llama::tiny(&device);
    let refused = dense
        .export_quantized(out.path(), None, &QuantizationConfig::nf4())
        .unwrap_err();
    let setting = matches!(
        refused,
        LoadError::Setting {
            setting: "quantizer",
            ..
        }
    );
    assert!(setting, "{refused}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

/// A change to a layer's parts, and words of the refusal.
type Change = (fn(&mut BTreeMap<String, Part>), &'static [&'static str]);

fn name(part: &str) -> String {
    format!("{LAYER}.{part}")
}

const STATE: &str = "weight.quant_state.bitsandbytes__nf4";

fn set_state(tensors: &mut BTreeMap<String, Part>, text: String) {
    let part = tensors.get_mut(&name(STATE)).unwrap();
    (part.shape, part.bytes) = (vec![text.len()], text.into_bytes());
}

#[test]
fn damaged_parts_are_refused() {
    let changes: [Change; 8] = [
        (
            |tensors| drop(tensors.remove(&name("weight.absmax"))),
            &[WEIGHTS, LAYER, "`weight.absmax` is missing"],
        ),
        (
            |tensors| drop(tensors.remove(&name("weight"))),
            &[LAYER, "`weight` is missing"],
        ),
        (
            |tensors| drop(tensors.remove(&name(STATE))),
            &["no place", "q_proj.weight.absmax"],
        ),
        (
            |tensors| {
                let extra = tensors[&name("weight.absmax")].clone();
                tensors.insert(name("weight.SCB"), extra);
            },
            &[LAYER, "weight.SCB", "no part"],
        ),
        (
            |tensors| set_state(tensors, r#"{"shape": [32, 128]}"#.to_string()),
            &[LAYER, "[32, 128]", "[64, 64]"],
        ),
        (
            |tensors| set_state(tensors, r#"{"shape": [64, 64]}"#.to_string()),
            &[LAYER, "settings"],
        ),
        (
            |tensors| set_state(tensors, "[".repeat(1000)),
            &[LAYER, "settings"],
        ),
        (
            |tensors| set_state(tensors, " ".repeat(1 << 17)),
            &[LAYER, "131072 bytes"],
        ),
    ];
    let device = cpu_devices().remove(0).1;
    let good = tensors(&golden("nf4").join(WEIGHTS));
    for (index, (change, words)) in changes.into_iter().enumerate() {
        let dir = without_weights("nf4");
        let mut tensors = good.clone();
        change(&mut tensors);
        write(&tensors, &dir.path().join(WEIGHTS));
        let refused = try_load(dir.path(), &device).unwrap_err().to_string();
        for word in words {
            assert!(refused.contains(word), "{index}: {refused}");
        }
    }
}

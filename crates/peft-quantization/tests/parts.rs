//! Checkpoints that bitsandbytes wrote, and such as nobody should read.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::DType;
use peft_quantization::{FloatFormat, FourBit, FourBitKind, Part};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const STATE: &str = "weight.quant_state.bitsandbytes__nf4";

/// The parts of one of the golden's weights, and what was quantized.
fn golden(case: &str) -> (BTreeMap<String, Part>, Vec<f32>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/state.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut parts = BTreeMap::new();
    let mut input = Vec::new();
    for (name, tensor) in tensors.iter() {
        let Some(name) = name
            .strip_prefix(case)
            .and_then(|name| name.strip_prefix('.'))
        else {
            continue;
        };
        if name == "input" {
            let values = tensor.data().as_chunks::<4>().0.iter();
            input = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
            continue;
        }
        let part = Part {
            dtype: match tensor.dtype() {
                Dtype::U8 => DType::U8,
                Dtype::F32 => DType::F32,
                other => panic!("the golden file has no {other}"),
            },
            shape: tensor.shape().to_vec(),
            bytes: tensor.data().to_vec(),
        };
        parts.insert(name.to_string(), part);
    }
    (parts, input)
}

fn state(parts: &BTreeMap<String, Part>) -> Value {
    let (_, part) = parts
        .iter()
        .find(|(name, _)| name.contains("quant_state"))
        .unwrap();
    serde_json::from_slice(&part.bytes).unwrap()
}

#[test]
fn upstreams_parts_are_read_and_written() {
    for (case, kind, dtype) in [
        ("nested", FourBitKind::Nf4, FloatFormat::Float32),
        ("large", FourBitKind::Nf4, FloatFormat::Bfloat16),
        ("plain", FourBitKind::Fp4, FloatFormat::Float16),
    ] {
        let (parts, input) = golden(case);
        let read = FourBit::from_parts(&parts).unwrap();
        assert_eq!((read.kind(), read.dtype()), (kind, dtype), "{case}");
        // The same from the weight itself.
        let shape = peft_ops::quantized::QuantizedMatrix::shape(&read);
        let quantized = FourBit::quantize(&input, shape, read.options()).unwrap();
        assert_eq!(quantized.with_dtype(dtype), read, "{case}");
        let written = read.to_parts();
        assert!(written.keys().eq(parts.keys()), "{case}");
        assert_eq!(state(&written), state(&parts), "{case}");
        for (name, part) in &written {
            if !name.contains("quant_state") {
                assert_eq!(part, &parts[name], "{case} {name}");
            }
        }
    }
}

#[test]
fn codes_may_be_stored_as_anything() {
    let (mut parts, _) = golden("nested");
    let read = FourBit::from_parts(&parts).unwrap();
    let codes = parts.get_mut("weight").unwrap();
    codes.dtype = DType::BF16;
    codes.shape = vec![codes.bytes.len() / 2, 1];
    assert_eq!(FourBit::from_parts(&parts).unwrap(), read);
}

/// One change to the parts of a good weight, and a word of the refusal.
type Change = (fn(&mut BTreeMap<String, Part>), &'static str);

fn set(parts: &mut BTreeMap<String, Part>, field: &str, value: Value) {
    let mut changed = state(parts);
    changed[field] = value;
    parts.get_mut(STATE).unwrap().bytes = serde_json::to_vec(&changed).unwrap();
}

fn cut(parts: &mut BTreeMap<String, Part>, name: &str) {
    parts.get_mut(name).unwrap().bytes.pop();
}

fn float(parts: &mut BTreeMap<String, Part>, name: &str, value: f32) {
    parts.get_mut(name).unwrap().bytes[..4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn hostile_parts_are_refused() {
    let changes: [Change; 27] = [
        (|parts| drop(parts.remove("weight")), "missing"),
        (|parts| drop(parts.remove("weight.absmax")), "missing"),
        (|parts| drop(parts.remove("weight.quant_map")), "missing"),
        (
            |parts| drop(parts.remove("weight.nested_absmax")),
            "missing",
        ),
        (
            |parts| drop(parts.remove("weight.nested_quant_map")),
            "missing",
        ),
        (|parts| drop(parts.remove(STATE)), "must be there"),
        (|parts| cut(parts, "weight"), "bytes"),
        (|parts| cut(parts, "weight.absmax"), "bytes"),
        (|parts| cut(parts, "weight.quant_map"), "bytes"),
        (|parts| cut(parts, "weight.nested_absmax"), "bytes"),
        (|parts| cut(parts, STATE), "settings"),
        (|parts| set(parts, "shape", json!([48, 81])), "bytes"),
        (
            |parts| set(parts, "shape", json!([usize::MAX, 2])),
            "impossible",
        ),
        (
            |parts| set(parts, "shape", json!([1_u64 << 40, 1_u64 << 20])),
            "bytes",
        ),
        (|parts| set(parts, "shape", json!([0, 80])), "impossible"),
        (|parts| set(parts, "shape", json!([3840])), "matrices"),
        (|parts| set(parts, "shape", json!([-48, -80])), "settings"),
        (|parts| set(parts, "shape", Value::Null), "settings"),
        (|parts| set(parts, "blocksize", json!(0)), "power of two"),
        (|parts| set(parts, "blocksize", json!(128)), "bytes"),
        (|parts| set(parts, "quant_type", json!("fp4")), "name"),
        (
            |parts| set(parts, "nested_offset", json!(1e300)),
            "overflows",
        ),
        (|parts| set(parts, "nested_blocksize", json!(128)), "256"),
        (|parts| float(parts, "weight.quant_map", -0.99), "standard"),
        (
            |parts| float(parts, "weight.nested_quant_map", -1.0),
            "standard",
        ),
        (
            |parts| float(parts, "weight.nested_absmax", f32::NAN),
            "finite",
        ),
        (
            |parts| drop(parts.insert("weight.SCB".to_string(), parts["weight"].clone())),
            "no part",
        ),
    ];
    for (index, (change, word)) in changes.into_iter().enumerate() {
        let (mut parts, _) = golden("nested");
        change(&mut parts);
        let refused = FourBit::from_parts(&parts).unwrap_err().to_string();
        assert!(refused.contains(word), "{index}: {refused}");
    }
    // Plain scales where the settings say nested ones, and the other way.
    let (mut parts, _) = golden("plain");
    float(&mut parts, "weight.absmax", -1.0);
    assert!(
        FourBit::from_parts(&parts)
            .unwrap_err()
            .to_string()
            .contains("magnitude")
    );
    let (mut parts, _) = golden("nested");
    let scales = parts.get_mut("weight.absmax").unwrap();
    (scales.dtype, scales.shape) = (DType::F32, vec![15]);
    assert!(
        FourBit::from_parts(&parts)
            .unwrap_err()
            .to_string()
            .contains("U8")
    );
}

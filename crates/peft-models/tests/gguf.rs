//! GGUF files: values are those of llama.cpp's Python package, damaged files are refused.

mod common;

use std::path::{Path, PathBuf};

use common::Golden;
use peft_models::gguf::Gguf;

const F32: u32 = 0;
const Q8_0: u32 = 8;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/gguf")
        .join(name)
}

fn types() -> Gguf {
    Gguf::open(golden("types.gguf")).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn assert_names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// A file of these bytes.
fn written(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn refusal(bytes: &[u8]) -> String {
    let file = written(bytes);
    Gguf::open(file.path()).unwrap_err().to_string()
}

/// A header that claims so many tensors and values, what follows it, and 512 bytes.
fn file(tensors: u64, values: u64, rest: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(values.to_le_bytes());
    bytes.extend(rest.concat());
    bytes.resize(bytes.len() + 512, 0);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// A key and its value, of GGUF's type `kind`.
fn value(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

fn alignment(alignment: u32) -> Vec<u8> {
    value("general.alignment", 4, &alignment.to_le_bytes())
}

/// Type and length of an array.
fn array(kind: u32, count: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes
}

/// Description of a tensor; `axes` are in GGUF's order.
fn tensor(name: &str, axes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((axes.len() as u32).to_le_bytes());
    bytes.extend(axes.iter().flat_map(|axis| axis.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn values_of_every_type_are_those_of_llama_cpp() {
    let gguf = types();
    let expected = Golden::open(golden("expected.safetensors"));
    let mut found = Vec::new();
    for name in gguf.names() {
        let values = gguf.read(name).unwrap();
        let kind = gguf.tensor_type(name).unwrap();
        let count: usize = gguf.shape(name).unwrap().iter().product();
        assert_eq!(values.len(), count, "{name}");
        assert_eq!(
            bits(&values),
            bits(&expected.floats(name)),
            "{name}, {kind}"
        );
        found.push(kind);
    }
    found.sort_unstable();
    found.dedup();
    let all = [
        "BF16", "F16", "F32", "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K",
        "Q6_K", "Q8_0",
    ];
    assert_eq!(found, all);
    assert_eq!(gguf.shape("f32.weight"), Some([2, 2, 4].as_slice()));
    assert_eq!(gguf.shape("q4_k.weight"), Some([3, 256].as_slice()));
    assert_eq!(gguf.shape("missing"), None);
    assert_eq!(gguf.tensor_type("missing"), None);
    let error = gguf.read("missing").unwrap_err().to_string();
    assert_names(&error, &["types.gguf", "`missing`"]);
}

#[test]
fn a_file_of_version_2_is_read_the_same() {
    let mut bytes = std::fs::read(golden("types.gguf")).unwrap();
    bytes[4] = 2;
    let file = written(&bytes);
    let gguf = Gguf::open(file.path()).unwrap();
    let values = gguf.read("q6_k.weight").unwrap();
    assert_eq!(bits(&values), bits(&types().read("q6_k.weight").unwrap()));
}

#[test]
fn metadata_of_every_type() {
    let gguf = types();
    for (key, expected) in [
        ("test.u8", 200),
        ("test.u16", 60_000),
        ("test.u32", 4_000_000_000),
        ("test.i64", 7),
    ] {
        assert_eq!(gguf.u32(key).unwrap(), Some(expected), "{key}");
    }
    for (key, expected) in [
        ("test.f32", 0.1_f32),
        ("test.f64", -0.25),
        ("test.i8", -100.0),
        ("test.i16", -30_000.0),
        ("test.i32", -2e9),
    ] {
        let found = gguf.f32(key).unwrap().unwrap();
        assert_eq!(found.to_bits(), expected.to_bits(), "{key}");
    }
    assert_eq!(gguf.bool("test.bool").unwrap(), Some(true));
    assert_eq!(gguf.str("tokenizer.ggml.pre").unwrap(), Some("smollm"));
    assert_eq!(gguf.ints("test.ints").unwrap(), Some(vec![-1, 2, 3]));
    let floats = gguf.floats("test.floats").unwrap().unwrap();
    assert_eq!(bits(&floats), bits(&[0.5, -1.5]));
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens[1], "<|im_start|>");
    let template = gguf.chat_template().unwrap();
    assert_eq!(template, Some("{{ messages[0].content }}"));
    assert!(gguf.keys().any(|key| key == "test.u64"));
    assert_eq!(gguf.u32("missing").unwrap(), None);

    for (error, parts) in [
        (
            gguf.u32("test.u64").unwrap_err(),
            ["`test.u64`", "18446744073709551615"],
        ),
        (gguf.u32("test.i8").unwrap_err(), ["`test.i8`", "-100"]),
        (
            gguf.f32("test.bool").unwrap_err(),
            ["`test.bool`", "a number"],
        ),
        (
            gguf.bool("test.u8").unwrap_err(),
            ["`test.u8`", "true or false"],
        ),
        (
            gguf.str("test.ints").unwrap_err(),
            ["array of 3 numbers", "a text"],
        ),
        (
            gguf.ints("test.floats").unwrap_err(),
            ["`test.floats`", "whole numbers"],
        ),
        (
            gguf.floats("test.ints").unwrap_err(),
            ["`test.ints`", "floating-point"],
        ),
        (
            gguf.strings("tokenizer.ggml.pre").unwrap_err(),
            ["\"smollm\"", "array of texts"],
        ),
    ] {
        assert_names(&error.to_string(), &parts);
        assert_names(&error.to_string(), &["types.gguf"]);
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    let bytes = std::fs::read(golden("types.gguf")).unwrap();
    for length in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let file = written(&bytes[..length]);
        let opened = Gguf::open(file.path());
        assert!(opened.is_err(), "{length} bytes of {}", bytes.len());
    }
}

#[test]
fn no_byte_of_the_header_makes_it_panic() {
    let bytes = std::fs::read(golden("types.gguf")).unwrap();
    let header = bytes.len() - 8_000;
    for place in (0..header).step_by(13).chain(0..400) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0xff;
        let file = written(&damaged);
        let Ok(gguf) = Gguf::open(file.path()) else {
            continue;
        };
        for name in gguf.names() {
            if let Ok(values) = gguf.read(name) {
                assert!(values.iter().all(|value| value.is_finite()));
            }
        }
    }
}

#[test]
fn files_that_are_not_such_files() {
    let missing = Gguf::open(golden("missing.gguf")).unwrap_err().to_string();
    assert_names(&missing, &["cannot read", "missing.gguf"]);
    let plain = file(0, 0, &[]);
    assert!(Gguf::open(written(&plain).path()).is_ok());
    let versioned = |magic: &[u8; 4], version: [u8; 4]| {
        let mut bytes = plain.clone();
        bytes[..4].copy_from_slice(magic);
        bytes[4..8].copy_from_slice(&version);
        refusal(&bytes)
    };
    assert_names(&versioned(b"GGML", [3, 0, 0, 0]), &["GGUF"]);
    assert_names(&versioned(b"GGUF", [1, 0, 0, 0]), &["version 1", "2 and 3"]);
    assert_names(&versioned(b"GGUF", [0, 0, 0, 3]), &["big-endian"]);
}

#[test]
fn counts_and_lengths_that_cannot_be() {
    let most = u64::MAX.to_string();
    let long = u64::MAX.to_le_bytes().to_vec();
    for bytes in [
        file(u64::MAX, 0, &[]),
        file(0, u64::MAX, &[]),
        file(0, 1, std::slice::from_ref(&long)),
        file(0, 1, &[value("key", 8, &long)]),
        file(0, 1, &[value("key", 9, &array(8, u64::MAX))]),
        file(0, 1, &[value("key", 9, &array(10, u64::MAX))]),
        file(1, 0, std::slice::from_ref(&long)),
    ] {
        assert_names(&refusal(&bytes), &[&most]);
    }
    let cut = file(0, 1, &[value("key", 9, &array(8, 60))]);
    assert_names(&refusal(&cut[..cut.len() - 40]), &["`key`"]);
}

#[test]
fn values_that_cannot_be() {
    let one = value("key", 0, &[1]);
    let nested = array(9, 1);
    for (bytes, parts) in [
        (
            file(0, 2, &[one.clone(), one.clone()]),
            ["two values", "`key`"],
        ),
        (
            file(0, 1, &[value("key", 13, &[0; 8])]),
            ["`key`", "type 13"],
        ),
        (
            file(0, 1, &[value("key", 9, &array(13, 1))]),
            ["`key`", "type 13"],
        ),
        (
            file(0, 1, &[value("key", 9, &nested)]),
            ["`key`", "array of arrays"],
        ),
        (
            file(0, 1, &[value("key", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])]),
            ["`key`", "UTF-8"],
        ),
        (
            file(0, 1, &[alignment(0)]),
            ["general.alignment", "power of two"],
        ),
        (
            file(0, 1, &[alignment(48)]),
            ["general.alignment", "power of two"],
        ),
    ] {
        assert_names(&refusal(&bytes), &parts);
    }
}

#[test]
fn tensors_that_cannot_be() {
    let one = |axes: &[u64], kind: u32, offset: u64| file(1, 0, &[tensor("a", axes, kind, offset)]);
    let two = |name: &str, offset: u64| {
        file(
            2,
            0,
            &[tensor("a", &[32], F32, 0), tensor(name, &[8], F32, offset)],
        )
    };
    for (bytes, parts) in [
        (one(&[], F32, 0), ["`a`", "0 axes"]),
        (one(&[1; 5], F32, 0), ["`a`", "5 axes"]),
        (one(&[4, 0], F32, 0), ["`a`", "length 0"]),
        (one(&[1 << 40, 1 << 40], F32, 0), ["`a`", "too large"]),
        (one(&[1 << 62], F32, 0), ["`a`", "too large"]),
        (one(&[1 << 40], F32, 0), ["`a`", "do not lie in the file"]),
        (one(&[8], F32, 1 << 40), ["`a`", "do not lie in the file"]),
        (
            one(&[8], F32, u64::MAX - 31),
            ["`a`", "do not lie in the file"],
        ),
        (one(&[8], F32, 16), ["`a`", "alignment, 32"]),
        (one(&[33], Q8_0, 0), ["rows of 33", "blocks of 32"]),
        (one(&[32], 19, 0), ["IQ1_S (19)", "Q4_K"]),
        (one(&[32], 99, 0), ["type 99", "Q4_K"]),
        (two("a", 128), ["two tensors", "`a`"]),
        (two("b", 96), ["`a` and `b`", "overlap"]),
    ] {
        assert_names(&refusal(&bytes), &parts);
    }
    assert!(Gguf::open(written(&two("b", 128)).path()).is_ok());
}

#[test]
fn a_number_that_is_none() {
    for value in [f32::NAN, f32::INFINITY] {
        let mut bytes = file(1, 0, &[tensor("a", &[4], F32, 0)]);
        // The header has 24 bytes, and 33 of the tensor: values start at 64.
        bytes[64 + 2 * 4..64 + 3 * 4].copy_from_slice(&value.to_le_bytes());
        let file = written(&bytes);
        let error = Gguf::open(file.path()).unwrap().read("a").unwrap_err();
        let value = value.to_string();
        assert_names(&error.to_string(), &["`a`", "element 2", &value]);
    }
}

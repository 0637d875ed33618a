//! Damaged and hostile checkpoints of every method: refused or loaded, in bounded time and memory, never
//! a panic, and the model stays as it was.
//!
//! A fuzzer of both files: each case damages the configuration or the tensors of a real checkpoint in a few
//! places. `PROPTEST_CASES=100000 cargo test --release -p peft-parity --test hostile` runs as many; the number is
//! what sets the time.

use std::alloc::System;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use burn::tensor::TensorData;
use cap::Cap;
use peft::core::PeftModule as _;
use peft_models::Bert;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};

/// The model and a checkpoint are some hundred KiB; whoever asks for a GiB is told that there is none,
/// and the process ends.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 1 << 30);

const BASE: &str = "../peft-models/tests/golden/bert/base";

/// Checkpoints of all families: the folder, its tensors' file, their bytes, and the configuration.
static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let folders = [
        "../peft-reparameterization/tests/golden",
        "../peft-reparameterization/tests/golden/bert_more",
        "../peft-reparameterization/tests/golden/adapterhub",
        "../peft-soft-prompt/tests/golden",
        "../peft-soft-prompt/tests/golden/adapterhub",
        "../peft-additive/tests/golden",
        "../peft-hybrid/tests/golden",
    ];
    let mut cases = Vec::new();
    for folder in folders {
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        for path in paths {
            let Ok(text) = fs::read_to_string(path.join("adapter_config.json")) else {
                continue;
            };
            let file = ["adapter_model.safetensors", "adapter.safetensors"]
                .into_iter()
                .find(|file| path.join(file).exists())
                .unwrap();
            cases.push(Case {
                tensors: fs::read(path.join(file)).unwrap(),
                config: serde_json::from_str(&text).unwrap(),
                file,
            });
        }
    }
    assert!(cases.len() > 10);
    cases
});

struct Case {
    file: &'static str,
    tensors: Vec<u8>,
    config: Map<String, Value>,
}

/// Values that somebody might put into any field.
fn hostile() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3_i64..40).prop_map(Value::from),
        prop_oneof![
            Just(u64::MAX),
            Just(1 << 63),
            Just(1 << 40),
            Just(100_000_000_000)
        ]
        .prop_map(Value::from),
        prop_oneof![Just(1e308), Just(-1e-320), Just(0.5), Just(1e10)].prop_map(Value::from),
        prop_oneof![
            Just(""),
            Just("(a+)+$"),
            Just("((((((((("),
            Just("(.*)*(.*)*(.*)*x"),
            Just(".*"),
            Just("../../../../etc/passwd"),
            Just("all-linear"),
            Just("\u{0}"),
        ]
        .prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!(["query", "../x", ""])),
        Just(json!([[1, [2, [3]]]])),
        Just(json!({"query": -1, ".*": 1e300})),
        Just(json!({"query": 1_u64 << 40})),
        Just(Value::from("x".repeat(1 << 16))),
    ]
}

#[derive(Clone, Debug)]
enum Damage {
    /// A field of the configuration gets another value.
    Field(Index, Value),
    /// A field of the configuration is missing.
    NoField(Index),
    /// The configuration's text ends early.
    CutConfig(Index),
    /// The tensors' file ends early.
    Cut(Index),
    /// One byte of the tensors' file is another one.
    Byte(Index, u8),
    /// The header's length is another one.
    HeaderLength(u64),
    /// A tensor's entry in the header is another one.
    Entry(Index, Index, Value),
    /// A tensor has another name.
    Renamed(Index, Index),
    /// Four bytes of a tensor are these.
    Number(Index, u32),
    /// A tensor is there twice under one name.
    Twice(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<Index>;
    prop_oneof![
        6 => (index(), hostile()).prop_map(|(at, value)| Damage::Field(at, value)),
        2 => index().prop_map(Damage::NoField),
        1 => index().prop_map(Damage::CutConfig),
        1 => index().prop_map(Damage::Cut),
        2 => (index(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => prop_oneof![any::<u64>(), 0_u64..4096, Just(1 << 40)].prop_map(Damage::HeaderLength),
        4 => (index(), index(), hostile()).prop_map(|(at, field, value)| Damage::Entry(at, field, value)),
        1 => (index(), index()).prop_map(|(from, to)| Damage::Renamed(from, to)),
        2 => (index(), prop_oneof![Just(0x7fc0_0000), Just(0x7f80_0000), any::<u32>()])
            .prop_map(|(at, bits)| Damage::Number(at, bits)),
        1 => index().prop_map(Damage::Twice),
    ]
}

/// The header's text and where the data begins.
fn header(file: &[u8]) -> Option<(Map<String, Value>, usize)> {
    let length = u64::from_le_bytes(file.get(..8)?.try_into().ok()?);
    let end = 8_usize.checked_add(usize::try_from(length).ok()?)?;
    let map = serde_json::from_slice(file.get(8..end)?).ok()?;
    Some((map, end))
}

fn with_header(file: &[u8], change: impl FnOnce(&Map<String, Value>) -> String) -> Vec<u8> {
    let Some((map, end)) = header(file) else {
        return file.to_vec();
    };
    let text = change(&map);
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(&file[end..]);
    out
}

fn keys(map: &Map<String, Value>) -> Vec<String> {
    map.keys().cloned().collect()
}

impl Damage {
    fn apply(&self, config: &mut String, tensors: &mut Vec<u8>) {
        let edit = |config: &mut String, change: &dyn Fn(&mut Map<String, Value>, String)| {
            let Ok(mut map) = serde_json::from_str::<Map<String, Value>>(config) else {
                return;
            };
            let at = match self {
                Self::Field(at, _) | Self::NoField(at) if !map.is_empty() => at,
                _ => return,
            };
            let key = at.get(&keys(&map)).clone();
            change(&mut map, key);
            *config = Value::Object(map).to_string();
        };
        match self {
            Self::Field(_, value) => edit(config, &|map, key| {
                // One level down, too: AdapterHub's fields are there.
                match map.get_mut(&key) {
                    Some(Value::Object(inner)) if inner.len() > 2 => {
                        let last = keys(inner).pop().unwrap_or_default();
                        inner.insert(last, value.clone());
                    }
                    _ => {
                        map.insert(key, value.clone());
                    }
                }
            }),
            Self::NoField(_) => edit(config, &|map, key| {
                map.remove(&key);
            }),
            Self::CutConfig(at) => {
                let at = at.index(config.len() + 1);
                if config.is_char_boundary(at) {
                    config.truncate(at);
                }
            }
            Self::Cut(at) => tensors.truncate(at.index(tensors.len() + 1)),
            Self::Byte(at, byte) if !tensors.is_empty() => {
                let at = at.index(tensors.len());
                tensors[at] = *byte;
            }
            Self::HeaderLength(length) if tensors.len() >= 8 => {
                tensors[..8].copy_from_slice(&length.to_le_bytes());
            }
            Self::Number(at, bits) => {
                if let Some((_, end)) = header(tensors)
                    && tensors.len() >= end + 4
                {
                    let at = end + 4 * at.index((tensors.len() - end) / 4);
                    tensors[at..at + 4].copy_from_slice(&bits.to_le_bytes());
                }
            }
            Self::Entry(at, field, value) => {
                *tensors = with_header(tensors, |map| {
                    let mut map = map.clone();
                    let key = at.get(&keys(&map)).clone();
                    if let Some(Value::Object(entry)) = map.get_mut(&key) {
                        let name = field.get(&["dtype", "shape", "data_offsets"]);
                        let value = match (entry.get(*name), value) {
                            (Some(Value::Array(old)), Value::Number(_)) if !old.is_empty() => {
                                let mut new = old.clone();
                                new[field.index(old.len())] = value.clone();
                                Value::Array(new)
                            }
                            _ => value.clone(),
                        };
                        entry.insert((*name).to_string(), value);
                    }
                    Value::Object(map).to_string()
                });
            }
            Self::Renamed(from, to) => {
                *tensors = with_header(tensors, |map| {
                    let keys = keys(map);
                    let (from, to) = (from.get(&keys), to.get(&keys));
                    Value::Object(map.clone())
                        .to_string()
                        .replace(from.as_str(), to.as_str())
                });
            }
            Self::Twice(at) => {
                *tensors = with_header(tensors, |map| {
                    let key = at.get(&keys(map)).clone();
                    let text = Value::Object(map.clone()).to_string();
                    let entry = format!("{}:{},", json!(key), map[&key]);
                    text.replacen('{', &format!("{{{entry}"), 1)
                });
            }
            Self::Byte(..) | Self::HeaderLength(_) => {}
        }
    }
}

fn weights(model: &Bert) -> Vec<TensorData> {
    let params = model.layout().params;
    let of = |param: &peft::core::method::LayoutParam| match param.shape().len() {
        1 => param.value::<1>().to_data(),
        _ => param.value::<2>().to_data(),
    };
    params.iter().map(of).collect()
}

/// Loads what is in `dir`; a panic is a finding, an error is not.
fn load(base: &Bert, dir: &Path) -> bool {
    let start = Instant::now();
    let loaded = base.load_adapter("x", dir, &peft::methods());
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "loading took {:?}",
        start.elapsed()
    );
    if let Ok(model) = &loaded {
        // What was accepted can be used.
        assert!(model.counts().total > 0);
        let _ = model.summary().to_string();
        let _ = model.merge_and_unload();
    }
    loaded.is_ok()
}

proptest! {
    #[test]
    fn damage_is_refused_or_harmless(
        case in any::<Index>(),
        damages in prop::collection::vec(damage(), 1..4),
    ) {
        let device = peft::core::device::cpu_devices()[0].1.clone();
        thread_local! {
            static MODEL: std::cell::OnceCell<(Bert, Vec<TensorData>)> = const { std::cell::OnceCell::new() };
        }
        MODEL.with(|model| {
            let (base, before) = model.get_or_init(|| {
                let base = Bert::load(BASE, &device).unwrap();
                let before = weights(&base);
                (base, before)
            });
            let case = case.get(&CASES);
            let mut config = Value::Object(case.config.clone()).to_string();
            let mut tensors = case.tensors.clone();
            for damage in &damages {
                damage.apply(&mut config, &mut tensors);
            }
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("adapter_config.json"), config).unwrap();
            fs::write(dir.path().join(case.file), tensors).unwrap();
            load(base, dir.path());
            assert!(weights(base) == *before, "the base has changed");
            assert!(base.adapters().is_empty());
        });
    }
}

#[test]
fn whole_checkpoints_do_load() {
    // Else the test above would prove nothing.
    let device = peft::core::device::cpu_devices()[0].1.clone();
    let base = Bert::load(BASE, &device).unwrap();
    // AdaMSS groups the outputs of the base that it was trained on, which is another one here: it is refused.
    let of_any_base = |case: &&Case| case.config.get("peft_type") != Some(&json!("ADAMSS"));
    for case in CASES.iter().filter(of_any_base) {
        let dir = tempfile::tempdir().unwrap();
        let config = Value::Object(case.config.clone()).to_string();
        fs::write(dir.path().join("adapter_config.json"), &config).unwrap();
        fs::write(dir.path().join(case.file), &case.tensors).unwrap();
        let loaded = base.load_adapter("x", dir.path(), &peft::methods());
        assert!(loaded.is_ok(), "{:?}", loaded.err());
        assert!(load(&base, dir.path()), "{config}");
    }
}

#[test]
fn much_that_is_declared_costs_nothing() {
    let device = peft::core::device::cpu_devices()[0].1.clone();
    let base = Bert::load(BASE, &device).unwrap();
    let case = CASES
        .iter()
        .find(|case| case.config.get("peft_type") == Some(&"LORA".into()))
        .unwrap();
    for (header, says) in [
        // A GB in a KB.
        (
            json!({"a": {"dtype": "F32", "shape": [1 << 28], "data_offsets": [0, 1_u64 << 30]}}),
            "safetensors",
        ),
        (
            json!({"a": {"dtype": "F32", "shape": [1_u64 << 62, 1_u64 << 62], "data_offsets": [0, 4]}}),
            "safetensors",
        ),
        (
            json!({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
            "safetensors",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let text = header.to_string();
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(text.as_bytes());
        file.resize(1024, 0);
        let config = Value::Object(case.config.clone()).to_string();
        fs::write(dir.path().join("adapter_config.json"), config).unwrap();
        fs::write(dir.path().join(case.file), file).unwrap();
        let refused = base
            .load_adapter("x", dir.path(), &peft::methods())
            .unwrap_err();
        let text = refused.to_string();
        assert_contains(&text, says);
        assert_contains(&text, case.file);
    }
}

fn assert_contains(text: &str, part: &str) {
    assert!(text.contains(part), "{text}");
}

#[test]
fn looking_and_loading_leave_nothing_behind() {
    let device = peft::core::device::cpu_devices()[0].1.clone();
    let base = Bert::load(BASE, &device).unwrap();
    for case in CASES.iter().step_by(3) {
        let dir = tempfile::tempdir().unwrap();
        let config = Value::Object(case.config.clone()).to_string();
        fs::write(dir.path().join("adapter_config.json"), &config).unwrap();
        fs::write(dir.path().join(case.file), &case.tensors).unwrap();
        let round = || {
            load(&base, dir.path());
        };
        // Tests beside this one allocate, too: what is left behind every time is left behind by this one.
        round();
        let growths: Vec<usize> = (0..40)
            .map(|_| {
                let before = ALLOCATOR.allocated();
                (0..10).for_each(|_| round());
                ALLOCATOR.allocated().saturating_sub(before)
            })
            .take_while(|growth| *growth >= 20_000)
            .collect();
        assert!(
            growths.len() < 40,
            "{growths:?} bytes, each in ten rounds: {config}"
        );
    }
}

//! Damage to a GGUF file part by part.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::bytes::extreme;
use super::gguf::{ARRAY, Entry, FLOAT, File, I32, TEXT, U32, array, text};

/// GGUF's numbers of further types of values.
const BOOL: u32 = 7;
const U64: u32 = 10;

/// Keys that a whole file does not need.
const OTHER_KEYS: [&str; 10] = [
    "general.alignment",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.expert_count",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.type",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.unknown_token_id",
];

/// What happens to a file.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    /// The header counts other tensors and values than there are.
    Counts(u64, u64),
    /// A key has another value, of some type, or is added.
    Value(Index, u32, Vec<u8>),
    /// The bytes of a value are taken to be of another type.
    Kind(Index, u32),
    /// A text or an array has another length than it claims.
    Length(Index, u64),
    /// A key is not there, or twice.
    NoValue(Index),
    ValueTwice(Index),
    /// A tensor has another axis, or others altogether.
    Axis(Index, Index, u64),
    Axes(Index, Vec<u64>),
    /// A tensor is of another type.
    TensorKind(Index, u32),
    /// A tensor lies elsewhere.
    Offset(Index, u64),
    /// A tensor is not there, twice, or has the name of another one.
    NoTensor(Index),
    TensorTwice(Index),
    Renamed(Index, Index),
    /// Four bytes of a tensor are these.
    Number(Index, Index, u32),
}

/// Values of several types, as they are written.
fn value() -> impl Strategy<Value = (u32, Vec<u8>)> {
    let floats = vec![f32::NAN, f32::INFINITY, -1.0, 0.0, 1e-45, f32::MAX];
    let texts = vec![
        "",
        "llama",
        "qwen2",
        "gpt2",
        "linear",
        "yarn",
        "default",
        "tekken",
        "<s>",
        "{{ 1 / 0 }}",
    ];
    prop_oneof![
        3 => extreme().prop_map(|number| (U64, number.to_le_bytes().to_vec())),
        3 => (0_u32..70).prop_map(|number| (U32, number.to_le_bytes().to_vec())),
        2 => select(floats).prop_map(|number| (FLOAT, number.to_le_bytes().to_vec())),
        1 => any::<u8>().prop_map(|flag| (BOOL, vec![flag])),
        2 => select(texts.clone()).prop_map(|content| (TEXT, text(content))),
        1 => prop::collection::vec(select(texts), 0..4)
            .prop_map(|texts| (ARRAY, array(TEXT, texts.into_iter().map(text)))),
        1 => prop::collection::vec(any::<i32>(), 0..4).prop_map(|numbers| {
            (ARRAY, array(I32, numbers.into_iter().map(|number| number.to_le_bytes().to_vec())))
        }),
        1 => (0_u32..14, extreme()).prop_map(|(kind, count)| {
            (ARRAY, [kind.to_le_bytes().as_slice(), &count.to_le_bytes()].concat())
        }),
    ]
}

/// Any damage.
pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<Index>;
    let bits = vec![f32::NAN.to_bits(), f32::INFINITY.to_bits(), 0x7c00_7c00, 0];
    prop_oneof![
        1 => (extreme(), extreme()).prop_map(|(tensors, values)| Damage::Counts(tensors, values)),
        8 => (index(), value()).prop_map(|(at, (kind, bytes))| Damage::Value(at, kind, bytes)),
        1 => (index(), 0_u32..14).prop_map(|(at, kind)| Damage::Kind(at, kind)),
        2 => (index(), extreme()).prop_map(|(at, length)| Damage::Length(at, length)),
        1 => index().prop_map(Damage::NoValue),
        1 => index().prop_map(Damage::ValueTwice),
        2 => (index(), index(), extreme()).prop_map(|(at, axis, size)| Damage::Axis(at, axis, size)),
        1 => (index(), prop::collection::vec(extreme(), 0..6))
            .prop_map(|(at, axes)| Damage::Axes(at, axes)),
        2 => (index(), 0_u32..40).prop_map(|(at, kind)| Damage::TensorKind(at, kind)),
        2 => (index(), extreme()).prop_map(|(at, offset)| Damage::Offset(at, offset)),
        1 => index().prop_map(Damage::NoTensor),
        1 => index().prop_map(Damage::TensorTwice),
        1 => (index(), index()).prop_map(|(from, to)| Damage::Renamed(from, to)),
        2 => (index(), index(), prop_oneof![select(bits), any::<u32>()])
            .prop_map(|(tensor, at, bits)| Damage::Number(tensor, at, bits)),
    ]
}

impl Damage {
    /// Damages a file that has values and tensors.
    pub(crate) fn apply(&self, file: &mut File) {
        let File {
            values,
            tensors,
            counts,
        } = file;
        match self {
            Self::Counts(tensors, values) => *counts = Some([*tensors, *values]),
            Self::Value(at, kind, bytes) => {
                let place = at.index(values.len() + OTHER_KEYS.len());
                let key = match values.get(place) {
                    Some(entry) => entry.key.clone(),
                    None => OTHER_KEYS[place - values.len()].to_string(),
                };
                values.retain(|entry| entry.key != key);
                let (kind, bytes) = (*kind, bytes.clone());
                values.push(Entry { key, kind, bytes });
            }
            Self::Kind(at, kind) => at.get_mut(values).kind = *kind,
            Self::Length(at, length) => {
                let entry = at.get_mut(values);
                let start = if entry.kind == ARRAY { 4 } else { 0 };
                if let Some(bytes) = entry.bytes.get_mut(start..start + 8) {
                    bytes.copy_from_slice(&length.to_le_bytes());
                }
            }
            Self::NoValue(at) => drop(values.remove(at.index(values.len()))),
            Self::ValueTwice(at) => {
                let twin = at.get(values).clone();
                values.push(twin);
            }
            Self::Axis(at, axis, size) => {
                let axes = &mut at.get_mut(tensors).axes;
                if !axes.is_empty() {
                    *axis.get_mut(axes) = *size;
                }
            }
            Self::Axes(at, axes) => at.get_mut(tensors).axes.clone_from(axes),
            Self::TensorKind(at, kind) => at.get_mut(tensors).kind = *kind,
            Self::Offset(at, offset) => at.get_mut(tensors).offset = Some(*offset),
            Self::NoTensor(at) => drop(tensors.remove(at.index(tensors.len()))),
            Self::TensorTwice(at) => {
                let twin = at.get(tensors).clone();
                tensors.push(twin);
            }
            Self::Renamed(from, to) => {
                let name = to.get(tensors).name.clone();
                from.get_mut(tensors).name = name;
            }
            Self::Number(tensor, at, bits) => {
                let data = &mut tensor.get_mut(tensors).data;
                let at = 4 * at.index(data.len() / 4);
                data[at..at + 4].copy_from_slice(&bits.to_le_bytes());
            }
        }
    }
}

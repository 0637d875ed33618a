//! Damage to a safetensors file.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value};

use super::bytes::extreme;
use super::values::{hostile, keys, twice};

/// What happens to a safetensors file.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    /// The header has another length.
    HeaderLength(u64),
    /// A field of a tensor's entry, or a number in it, is another one.
    Entry(Index, Index, Value),
    /// A tensor is not there.
    NoTensor(Index),
    /// A tensor has the name of another one.
    Renamed(Index, Index),
    /// A tensor has two entries.
    Twice(Index, Value),
    /// Four bytes of a tensor are these.
    Number(Index, u32),
}

/// Any damage.
pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<Index>;
    let numbers = vec![
        f32::NAN.to_bits(),
        f32::INFINITY.to_bits(),
        f32::MAX.to_bits(),
        1,
    ];
    prop_oneof![
        1 => extreme().prop_map(Damage::HeaderLength),
        4 => (index(), index(), hostile())
            .prop_map(|(tensor, field, value)| Damage::Entry(tensor, field, value)),
        1 => index().prop_map(Damage::NoTensor),
        1 => (index(), index()).prop_map(|(from, to)| Damage::Renamed(from, to)),
        1 => (index(), hostile()).prop_map(|(at, value)| Damage::Twice(at, value)),
        3 => (index(), prop_oneof![select(numbers), any::<u32>()])
            .prop_map(|(at, bits)| Damage::Number(at, bits)),
    ]
}

impl Damage {
    /// Damages a file. One whose header cannot be read stays as it is, but for the header's length.
    pub(crate) fn apply(&self, file: &mut Vec<u8>) {
        if let Self::HeaderLength(length) = self {
            if file.len() >= 8 {
                file[..8].copy_from_slice(&length.to_le_bytes());
            }
            return;
        }
        let Some((map, end)) = header(file) else {
            return;
        };
        if let Self::Number(at, bits) = self {
            if file.len() >= end + 4 {
                let at = end + 4 * at.index((file.len() - end) / 4);
                file[at..at + 4].copy_from_slice(&bits.to_le_bytes());
            }
        } else if !map.is_empty() {
            *file = with_header(&self.header(map), &file[end..]);
        }
    }

    /// The header's text after the damage.
    fn header(&self, mut map: Map<String, Value>) -> String {
        match self {
            Self::Entry(tensor, field, value) => {
                let key = tensor.get(&keys(&map)).clone();
                if let Some(Value::Object(entry)) = map.get_mut(&key) {
                    let name = field.get(&["dtype", "shape", "data_offsets"]);
                    match (entry.get_mut(*name), value) {
                        (Some(Value::Array(list)), Value::Number(_)) if !list.is_empty() => {
                            *field.get_mut(list) = value.clone();
                        }
                        _ => {
                            entry.insert((*name).to_string(), value.clone());
                        }
                    }
                }
            }
            Self::NoTensor(at) => {
                let key = at.get(&keys(&map)).clone();
                map.remove(&key);
            }
            Self::Renamed(from, to) => {
                let keys = keys(&map);
                let entry = map.remove(from.get(&keys)).unwrap();
                map.insert(to.get(&keys).clone(), entry);
            }
            Self::Twice(at, value) => return twice(&map, at, value),
            Self::HeaderLength(_) | Self::Number(..) => {}
        }
        Value::Object(map).to_string()
    }
}

/// A file with this header.
pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [length.as_slice(), header.as_bytes(), data].concat()
}

/// The header, and where the data begins.
fn header(file: &[u8]) -> Option<(Map<String, Value>, usize)> {
    let length = u64::from_le_bytes(file.get(..8)?.try_into().ok()?);
    let end = 8_usize.checked_add(usize::try_from(length).ok()?)?;
    let map = serde_json::from_slice(file.get(8..end)?).ok()?;
    Some((map, end))
}

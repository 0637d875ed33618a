//! Damage to a file of which nothing is known.

use proptest::prelude::*;
use proptest::sample::{Index, select};

/// What happens to a file's bytes.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    /// It ends early.
    Cut(Index),
    /// One byte is another one.
    Byte(Index, u8),
    /// Eight bytes are this number.
    Number(Index, u64),
    /// Eight bytes of the first 400, where headers have their counts, are this number.
    EarlyNumber(Index, u64),
    /// What lies at the first place is at the second one, too, or in its place.
    Splice(Index, Index, Index, bool),
    /// Something follows it.
    Longer(Vec<u8>),
}

/// Numbers at which counts, lengths and places overflow, or are a little off.
pub(crate) fn extreme() -> impl Strategy<Value = u64> {
    let known = vec![
        0,
        1,
        3,
        31,
        33,
        64,
        1 << 20,
        1 << 31,
        u64::from(u32::MAX),
        1 << 32,
        1 << 40,
        1 << 61,
        1 << 62,
        1 << 63,
        u64::MAX - 31,
        u64::MAX,
    ];
    prop_oneof![4 => select(known), 1 => any::<u64>()]
}

/// Any damage.
pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<Index>;
    prop_oneof![
        1 => index().prop_map(Damage::Cut),
        3 => (index(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        2 => (index(), extreme()).prop_map(|(at, number)| Damage::Number(at, number)),
        2 => (index(), extreme()).prop_map(|(at, number)| Damage::EarlyNumber(at, number)),
        2 => (index(), index(), index(), any::<bool>())
            .prop_map(|(from, to, length, instead)| Damage::Splice(from, to, length, instead)),
        1 => prop::collection::vec(any::<u8>(), 1..64).prop_map(Damage::Longer),
    ]
}

impl Damage {
    /// Damages a file. One that is too short for this stays as it is.
    pub(crate) fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Cut(at) => file.truncate(at.index(file.len() + 1)),
            Self::Byte(at, byte) => {
                if !file.is_empty() {
                    let at = at.index(file.len());
                    file[at] = *byte;
                }
            }
            Self::Number(at, number) => {
                let within = file.len();
                overwrite(file, at, within, *number);
            }
            Self::EarlyNumber(at, number) => {
                let within = file.len().min(400);
                overwrite(file, at, within, *number);
            }
            Self::Splice(from, to, length, instead) => {
                let (from, to) = (from.index(file.len() + 1), to.index(file.len() + 1));
                let part = file[from..].to_vec();
                let part = &part[..length.index(part.len() + 1)];
                let end = if *instead {
                    file.len().min(to + part.len())
                } else {
                    to
                };
                file.splice(to..end, part.iter().copied());
            }
            Self::Longer(bytes) => file.extend_from_slice(bytes),
        }
    }
}

/// Puts a number somewhere into the first `within` bytes.
#[allow(clippy::trivially_copy_pass_by_ref)] // As proptest hands them out.
fn overwrite(file: &mut [u8], at: &Index, within: usize, number: u64) {
    if within >= 8 {
        let at = at.index(within - 7);
        file[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
}

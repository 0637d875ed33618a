//! Values in the header of a GGUF file.

use std::fmt;

use super::Gguf;
use crate::LoadError;

/// How many characters of a text an error shows.
const SHOWN: usize = 60;

/// A type of numbers of a fixed size.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

/// A number of any type.
pub(super) enum Number {
    Int(i128),
    Float(f64),
    Bool(bool),
}

/// The value of a key.
pub(super) enum Value {
    Number(Number),
    Text(String),
    /// An array as it lies in the file, so that it takes no more memory than there.
    Numbers(Kind, Vec<u8>),
    Texts(Vec<String>),
}

impl Kind {
    /// The type of GGUF's number `id`, if that is a type of a fixed size.
    pub(super) fn of(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of a number.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The number that `bytes` are, in little endian.
    pub(super) fn number(self, bytes: &[u8]) -> Number {
        let raw = bytes
            .iter()
            .rev()
            .fold(0_u64, |raw, byte| (raw << 8) | u64::from(*byte));
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Number::Int(i128::from(raw)),
            Self::I8 => Number::Int(i128::from(raw as i8)),
            Self::I16 => Number::Int(i128::from(raw as i16)),
            Self::I32 => Number::Int(i128::from(raw as i32)),
            Self::I64 => Number::Int(i128::from(raw as i64)),
            Self::F32 => Number::Float(f64::from(f32::from_bits(raw as u32))),
            Self::F64 => Number::Float(f64::from_bits(raw)),
            Self::Bool => Number::Bool(raw != 0),
        }
    }
}

/// The value as a message shows it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(Number::Int(value)) => write!(f, "{value}"),
            Self::Number(Number::Float(value)) => write!(f, "{value}"),
            Self::Number(Number::Bool(value)) => write!(f, "{value}"),
            Self::Text(text) if text.chars().count() > SHOWN => {
                let start: String = text.chars().take(SHOWN).collect();
                write!(f, "{start:?}…")
            }
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Numbers(kind, bytes) => {
                write!(f, "an array of {} numbers", bytes.len() / kind.bytes())
            }
            Self::Texts(texts) => write!(f, "an array of {} texts", texts.len()),
        }
    }
}

/// Metadata by their keys. Each is None if there is no such key.
impl Gguf {
    /// Keys of the metadata, in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A whole number of any width.
    ///
    /// # Errors
    ///
    /// [`LoadError::Gguf`] if the value is no whole number, or does not fit.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, LoadError> {
        self.get(key, "a whole number below 2^32", |value| match value {
            Value::Number(Number::Int(value)) => u32::try_from(*value).ok(),
            _ => None,
        })
    }

    /// A number of any type, rounded to `f32`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Gguf`] if the value is no number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.get(key, "a number", |value| match value {
            Value::Number(Number::Float(value)) => Some(*value as f32),
            Value::Number(Number::Int(value)) => Some(*value as f32),
            _ => None,
        })
    }

    /// True or false.
    ///
    /// # Errors
    ///
    /// [`LoadError::Gguf`] if the value is neither.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.get(key, "true or false", |value| match value {
            Value::Number(Number::Bool(value)) => Some(*value),
            _ => None,
        })
    }

    /// A text.
    ///
    /// # Errors
    ///
    /// [`LoadError::Gguf`] if the value is no text.
    pub fn str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.get(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An array of texts.
    ///
    /// # Errors
    ///
    /// [`LoadError::Gguf`] if the value is no such array.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, LoadError> {
        self.get(key, "an array of texts", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// An array of whole numbers of any width.
    ///
    /// # Errors
    ///
    /// [`LoadError::Gguf`] if the value is no such array, or a number does not fit.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>, LoadError> {
        self.get(key, "an array of whole numbers below 2^63", |value| {
            value.numbers(|number| match number {
                Number::Int(value) => i64::try_from(value).ok(),
                _ => None,
            })
        })
    }

    /// An array of floating-point numbers, rounded to `f32`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Gguf`] if the value is no such array.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, LoadError> {
        self.get(key, "an array of floating-point numbers", |value| {
            value.numbers(|number| match number {
                Number::Float(value) => Some(value as f32),
                _ => None,
            })
        })
    }

    /// What a getter above gives, for a key that must be there: `need("a.key", Gguf::u32)`.
    pub(super) fn need<'a, T>(
        &'a self,
        key: &str,
        getter: impl FnOnce(&'a Self, &str) -> Result<Option<T>, LoadError>,
    ) -> Result<T, LoadError> {
        getter(self, key)?.ok_or_else(|| self.bad(format!("its header lacks `{key}`")))
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.bad(format!("`{key}` is {value}, but must be {wanted}"))),
        }
    }
}

impl Value {
    /// The numbers of an array, if `convert` takes all of them.
    fn numbers<T>(&self, convert: impl Fn(Number) -> Option<T>) -> Option<Vec<T>> {
        let Self::Numbers(kind, bytes) = self else {
            return None;
        };
        let numbers = bytes.chunks_exact(kind.bytes());
        numbers.map(|bytes| convert(kind.number(bytes))).collect()
    }
}

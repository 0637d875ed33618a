//! Reading the header of a GGUF file: metadata, and where the tensors lie.
//!
//! The file may be hostile: no length in it is believed before it is compared with the bytes that
//! are there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::metadata::{Kind, Number, Value};
use super::quants::{self, Encoding};
use crate::LoadError;

const MAGIC: [u8; 4] = *b"GGUF";

/// Bytes of the longest header that is read, so that a hostile one cannot ask for all memory.
/// Those of models with 256 000 tokens have about 20 MB.
const MAX_HEADER: u64 = 100_000_000;

/// The format's own bound on a key.
const MAX_KEY: u64 = 65_535;

/// Bytes of the longest tensor name; llama.cpp writes at most 64.
const MAX_NAME: u64 = 256;

/// The format's own bound on the axes of a tensor.
const MAX_AXES: u32 = 4;

/// Bytes that tensors are aligned to where `general.alignment` does not say.
const ALIGNMENT: u64 = 32;

/// Bytes of the smallest key with a value: length of the key, type, one byte.
const SMALLEST_VALUE: u64 = 8 + 4 + 1;

/// Bytes of the smallest description of a tensor: length of the name, axes, one axis, type, offset.
const SMALLEST_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;

/// GGUF's numbers of the types that are no numbers.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// A tensor of the file.
pub(super) struct Info {
    /// Outermost axis first.
    pub(super) shape: Vec<usize>,
    pub(super) encoding: &'static Encoding,
    /// From the start of the tensors at first, then from the start of the file.
    pub(super) offset: u64,
    pub(super) bytes: usize,
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, Info>);

/// Reads and checks the header.
pub(super) fn read(file: &File, path: &Path) -> Result<Header, LoadError> {
    let length = file
        .metadata()
        .map_err(|source| LoadError::Io {
            path: path.to_path_buf(),
            source,
        })?
        .len();
    let mut reader = Reader {
        inner: BufReader::new(file),
        path,
        position: 0,
        end: length.min(MAX_HEADER),
    };
    reader.version()?;
    let tensor_count = reader.count("the number of tensors", SMALLEST_TENSOR)?;
    let value_count = reader.count("the number of metadata values", SMALLEST_VALUE)?;

    let mut metadata = BTreeMap::new();
    for _ in 0..value_count {
        let key = reader.text(MAX_KEY, "a metadata key")?;
        let value = reader.value(&format!("the value of `{key}`"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(reader.bad(format!("it has two values of `{key}`")));
        }
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let name = reader.text(MAX_NAME, "the name of a tensor")?;
        let info = reader.tensor(&format!("tensor `{name}`"))?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(reader.bad(format!("it has two tensors `{name}`")));
        }
    }
    reader.place(&mut tensors, &metadata, length)?;
    Ok((metadata, tensors))
}

struct Reader<'a> {
    inner: BufReader<&'a File>,
    path: &'a Path,
    position: u64,
    /// Where the header has to end at the latest.
    end: u64,
}

impl Reader<'_> {
    fn bad(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Gguf {
            path: self.path.to_path_buf(),
            reason: reason.into(),
        }
    }

    /// That the header has `bytes` more.
    fn check(&self, bytes: u64, what: &str) -> Result<(), LoadError> {
        let left = self.end - self.position;
        if bytes <= left {
            return Ok(());
        }
        Err(self.bad(format!(
            "{what}, at byte {}, needs {bytes} bytes, but {left} are left for the header",
            self.position
        )))
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<(), LoadError> {
        self.check(buffer.len() as u64, what)?;
        self.inner
            .read_exact(buffer)
            .map_err(|source| LoadError::Io {
                path: self.path.to_path_buf(),
                source,
            })?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn take(&mut self, bytes: u64, what: &str) -> Result<Vec<u8>, LoadError> {
        // Checked before there is memory for it.
        self.check(bytes, what)?;
        let mut buffer = vec![0; bytes as usize];
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    fn u32(&mut self, what: &str) -> Result<u32, LoadError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes, what)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self, what: &str) -> Result<u64, LoadError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes, what)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The number of things of at least `smallest` bytes that follow.
    fn count(&mut self, what: &str, smallest: u64) -> Result<u64, LoadError> {
        let count = self.u64(what)?;
        let most = (self.end - self.position) / smallest;
        if count > most {
            return Err(self.bad(format!(
                "{what} is {count}, but the file has room for {most} at most"
            )));
        }
        Ok(count)
    }

    fn text(&mut self, longest: u64, what: &str) -> Result<String, LoadError> {
        let length = self.u64(what)?;
        if length > longest {
            return Err(self.bad(format!(
                "{what}, at byte {}, claims {length} bytes; at most {longest} are read",
                self.position
            )));
        }
        let start = self.position;
        let bytes = self.take(length, what)?;
        String::from_utf8(bytes)
            .map_err(|_| self.bad(format!("{what}, at byte {start}, is not UTF-8")))
    }

    fn version(&mut self) -> Result<(), LoadError> {
        let mut magic = [0; 4];
        self.fill(&mut magic, "the magic number")?;
        if magic != MAGIC {
            return Err(self.bad("it is no GGUF file: it does not start with `GGUF`"));
        }
        let version = self.u32("the version")?;
        match (version, version.swap_bytes()) {
            (2 | 3, _) => Ok(()),
            (_, 2 | 3) => {
                Err(self.bad("it is a big-endian GGUF file; little-endian ones are read"))
            }
            _ => Err(self.bad(format!(
                "it is of GGUF version {version}; versions 2 and 3 are read"
            ))),
        }
    }

    fn value(&mut self, what: &str) -> Result<Value, LoadError> {
        match self.u32(what)? {
            TEXT => Ok(Value::Text(self.text(u64::MAX, what)?)),
            ARRAY => self.array(what),
            id => {
                let kind = self.kind(id, what)?;
                let bytes = self.take(kind.bytes() as u64, what)?;
                Ok(Value::Number(kind.number(&bytes)))
            }
        }
    }

    fn array(&mut self, what: &str) -> Result<Value, LoadError> {
        match self.u32(what)? {
            TEXT => {
                let count = self.count(what, 8)?;
                let mut texts = Vec::new();
                for _ in 0..count {
                    texts.push(self.text(u64::MAX, what)?);
                }
                Ok(Value::Texts(texts))
            }
            // llama.cpp does not read them either.
            ARRAY => Err(self.bad(format!("{what} is an array of arrays, which is not read"))),
            id => {
                let kind = self.kind(id, what)?;
                let count = self.count(what, kind.bytes() as u64)?;
                let bytes = self.take(count * kind.bytes() as u64, what)?;
                Ok(Value::Numbers(kind, bytes))
            }
        }
    }

    fn kind(&self, id: u32, what: &str) -> Result<Kind, LoadError> {
        Kind::of(id).ok_or_else(|| {
            self.bad(format!(
                "{what} is of type {id}, but GGUF's types are 0 to 12"
            ))
        })
    }

    fn tensor(&mut self, what: &str) -> Result<Info, LoadError> {
        let axes = self.u32(what)?;
        if !(1..=MAX_AXES).contains(&axes) {
            return Err(self.bad(format!(
                "{what} has {axes} axes; 1 to {MAX_AXES} are possible"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            let axis = self.u64(what)?;
            match usize::try_from(axis) {
                Ok(axis) if axis > 0 => shape.push(axis),
                _ => return Err(self.bad(format!("{what} has an axis of length {axis}"))),
            }
        }
        // The first axis is the one whose values lie side by side.
        let row = shape[0];
        shape.reverse();
        let id = self.u32(what)?;
        let encoding = quants::encoding(id).ok_or_else(|| {
            self.bad(format!(
                "{what} is of type {}; those that are read are {}",
                quants::name(id),
                quants::names()
            ))
        })?;
        if !row.is_multiple_of(encoding.values) {
            return Err(self.bad(format!(
                "{what} is of type {} in rows of {row}, which are no blocks of {}",
                encoding.name, encoding.values
            )));
        }
        let bytes = shape
            .iter()
            .try_fold(1_usize, |count, axis| count.checked_mul(*axis))
            // As f32 the values must fit as well.
            .filter(|count| count.checked_mul(size_of::<f32>()).is_some())
            .and_then(|count| (count / encoding.values).checked_mul(encoding.bytes))
            .ok_or_else(|| {
                self.bad(format!(
                    "{what} has the shape {shape:?}, which is too large"
                ))
            })?;
        let offset = self.u64(what)?;
        Ok(Info {
            shape,
            encoding,
            offset,
            bytes,
        })
    }

    /// Turns offsets into positions in the file of `length` bytes. The header has been read.
    fn place(
        &self,
        tensors: &mut BTreeMap<String, Info>,
        metadata: &BTreeMap<String, Value>,
        length: u64,
    ) -> Result<(), LoadError> {
        let alignment = match metadata.get("general.alignment") {
            None => Some(ALIGNMENT),
            Some(Value::Number(Number::Int(value))) => u64::try_from(*value).ok(),
            Some(_) => None,
        };
        let alignment = alignment
            .filter(|alignment| alignment.is_power_of_two())
            .ok_or_else(|| self.bad("`general.alignment` must be a power of two"))?;
        let start = self.position.checked_next_multiple_of(alignment);

        let mut places = Vec::new();
        for (name, info) in tensors {
            if !info.offset.is_multiple_of(alignment) {
                return Err(self.bad(format!(
                    "tensor `{name}` is at {}, which is no multiple of the alignment, {alignment}",
                    info.offset
                )));
            }
            let from = start.and_then(|start| start.checked_add(info.offset));
            let to = from.and_then(|from| from.checked_add(info.bytes as u64));
            let (Some(from), Some(to)) = (from, to.filter(|to| *to <= length)) else {
                return Err(self.bad(format!(
                    "the {} bytes of tensor `{name}` do not lie in the file, which has {length}: \
                     fetch it again",
                    info.bytes
                )));
            };
            info.offset = from;
            places.push((from, to, name.as_str()));
        }
        places.sort_unstable();
        for pair in places.windows(2) {
            let ((_, end, name), (from, _, next)) = (pair[0], pair[1]);
            if from < end {
                return Err(self.bad(format!("tensors `{name}` and `{next}` overlap")));
            }
        }
        Ok(())
    }
}

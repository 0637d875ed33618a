//! Reading `tokenizer.json`, of which the crate `tokenizers` checks little.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::panics::caught;
use crate::{LoadError, checkpoint};

/// The largest file that is read. The largest published ones have some 35 MB.
const MOST: u64 = 1 << 28;

/// The part of the file in which sizes are declared; what else there is is only read through.
#[derive(Deserialize)]
struct Declared {
    #[serde(default)]
    normalizer: Value,
}

/// The tokenizer in a `tokenizer.json`.
///
/// # Errors
///
/// [`LoadError::Io`]; [`LoadError::Json`], which says where a file that was cut off ends; and
/// [`LoadError::Tokenizer`] for everything that makes no tokenizer.
pub(crate) fn read(path: &Path) -> Result<Tokenizer, LoadError> {
    let bytes = checkpoint::read_bounded(path, MOST)?;
    let declared: Declared = serde_json::from_slice(&bytes).map_err(|source| LoadError::Json {
        path: path.to_path_buf(),
        source,
    })?;
    let bad = |reason: String| LoadError::Tokenizer {
        path: path.to_path_buf(),
        reason,
    };
    check_maps(&declared.normalizer).map_err(bad)?;
    caught(path, || Tokenizer::from_bytes(bytes))?.map_err(|reason| bad(reason.to_string()))
}

/// SentencePiece's precompiled maps say how large their trie is, and as much memory is taken for it: it has to be
/// there.
fn check_maps(normalizer: &Value) -> Result<(), String> {
    match normalizer {
        Value::Array(parts) => parts.iter().try_for_each(check_maps),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let (true, Value::String(map)) = (name == "precompiled_charsmap", value) else {
                return check_maps(value);
            };
            let map = BASE64_STANDARD
                .decode(map)
                .map_err(|error| format!("its `{name}` is no base64: {error}"))?;
            let (size, rest) = map.split_first_chunk::<4>().ok_or_else(|| {
                format!("its `{name}` of {} bytes is too short for one", map.len())
            })?;
            let size = u32::from_le_bytes(*size) as usize;
            if size > rest.len() {
                let there = rest.len();
                return Err(format!(
                    "its `{name}` declares a trie of {size} bytes, and {there} follow"
                ));
            }
            Ok(())
        }),
        _ => Ok(()),
    }
}

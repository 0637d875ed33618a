//! `adapter_config.json` and `adapter_model.safetensors`: strict reading.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;

use crate::adapter::checkpoint_key::Style;
use crate::error::{Result, io, wrong};
use crate::files;
use crate::method::adapterhub::adapterhub_fields;
use crate::method::contract::Method;
use crate::upstream::CONFIG_FILE;

/// The number formats that floats of a file may have.
pub(crate) const FLOATS: &str = "F32, F16, BF16 or F64 would do";

/// The number formats that integers of a file may have.
pub(crate) const INTEGERS: &str = "I32, I64, I16 or U8 would do";

/// No configuration is larger; a file that is, is none.
const MOST_CONFIG_BYTES: u64 = 1 << 20;

impl Style {
    /// The one that a configuration's file says.
    pub(crate) fn of(config: &Value, method: &dyn Method) -> Self {
        if adapterhub_fields(config).is_some() {
            Self::AdapterHub
        } else {
            Self::upstream(method)
        }
    }

    /// Hugging Face PEFT's for a method.
    pub(crate) fn upstream(method: &dyn Method) -> Self {
        if method.is_prompt_learning() {
            Self::HuggingFacePrompt
        } else {
            Self::HuggingFace
        }
    }
}

/// The name of a folder's configuration: the usual one, or the only one of the form `adapter_…_config.json` where a
/// method has one of its own.
pub(crate) fn config_name(dir: &Path) -> String {
    let usual = CONFIG_FILE.to_string();
    if files::readable(dir, CONFIG_FILE, CONFIG_FILE).exists() {
        return usual;
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut others: Vec<String> = names
        .map(|name| files::named(&name).to_string())
        .filter(|name| name.starts_with("adapter_") && name.ends_with("_config.json"))
        .collect();
    others.sort();
    others.dedup();
    match others.as_slice() {
        [other] => other.clone(),
        _ => usual,
    }
}

/// Reads a folder's configuration file.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io), and [`Error::Checkpoint`](crate::Error::Checkpoint) if it is no JSON object of a plausible size.
pub fn read_config(dir: &Path) -> Result<Value> {
    let name = config_name(dir);
    let path = files::readable(dir, &name, &name);
    let size = fs::metadata(&path).map_err(io(&path))?.len();
    if size > MOST_CONFIG_BYTES {
        return Err(wrong(
            &path,
            format!("{size} bytes are too many for a configuration"),
        ));
    }
    let text = fs::read_to_string(&path).map_err(io(&path))?;
    let config: Value = serde_json::from_str(&text)
        .map_err(|error| wrong(&path, format!("no valid JSON: {error}")))?;
    if !config.is_object() {
        return Err(wrong(&path, "the configuration must be a JSON object"));
    }
    Ok(config)
}

/// Reads the tensors of a safetensors file, checking all that can be checked without a model.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io), and [`Error::Checkpoint`](crate::Error::Checkpoint) for a damaged file, a number format that no adapter has, NaN and infinity.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, TensorData>> {
    let bytes = fs::read(path).map_err(io(path))?;
    parse_tensors(path, &bytes)
}

fn parse_tensors(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, TensorData>> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| wrong(path, format!("no valid safetensors file: {error}")))?;
    let mut tensors = BTreeMap::new();
    for (key, view) in file.iter() {
        let dtype = match view.dtype() {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::I64 => DType::I64,
            Dtype::I32 => DType::I32,
            Dtype::I16 => DType::I16,
            Dtype::U8 => DType::U8,
            other => {
                let reason = format!(
                    "tensor `{key}` holds {other:?}; {FLOATS}, and {INTEGERS} for integers"
                );
                return Err(wrong(path, reason));
            }
        };
        let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
        refuse_not_finite(path, key, &data)?;
        tensors.insert(key.to_string(), data);
    }
    Ok(tensors)
}

/// Refuses floats that are no numbers.
pub(crate) fn refuse_not_finite(path: &Path, key: &str, data: &TensorData) -> Result<()> {
    let is_float = data.dtype().is_float();
    let mut values = data.iter::<f64>().take_while(|_| is_float);
    match values.position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let reason = format!("tensor `{key}` holds NaN or infinity at element {at}");
            Err(wrong(path, reason))
        }
    }
}

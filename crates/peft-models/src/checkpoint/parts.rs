//! Matrices in several tensors, as bitsandbytes and transformers save 4-bit weights.
//!
//! A matrix `x.weight` is stored as its codes under that name, and beside them `x.weight.absmax`,
//! `x.weight.quant_map` and others; `x.weight.quant_state.bitsandbytes__nf4` (or `__fp4`) holds JSON with the
//! matrix' shape. What the parts mean is the quantizer's to know: here they are put together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::DType;
use peft_core::ops::quantized::QuantizedWeight;
use peft_core::quantize::RawTensor;
use safetensors::Dtype;
use serde::Deserialize;

use super::{Checkpoint, Encoding, ReadParts, Shard, Slice, Stored};
use crate::LoadError;

/// What the name of the part with the settings has after the matrix' name.
const STATE: &str = ".quant_state.bitsandbytes__";

const WEIGHT: &str = "weight";

/// More than settings take; a part beyond is damaged or hostile.
const MAX_STATE: usize = 1 << 16;

/// What cannot be read without a quantizer says so.
pub(super) const NEEDS_PACKER: &str = "it is stored in bitsandbytes' 4 bits, which this loader does not \
     read without a quantizer for them: give `LlamaLoader::with_quantizer` the `QuantizationConfig::load(folder)` of \
     peft-quantization";

/// One of a matrix' tensors.
pub(super) struct Part {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) values: Slice,
}

/// What is read of the settings.
#[derive(Deserialize)]
struct State {
    shape: Vec<usize>,
}

/// `found`, with the parts of each matrix joined to one tensor. Files without such parts pass as is.
pub(super) fn join(
    path: &Path,
    shards: &mut [Shard],
    found: Vec<Stored>,
) -> Result<Vec<Stored>, LoadError> {
    let matrices: BTreeSet<String> = found
        .iter()
        .filter_map(|stored| Some(stored.name.rsplit_once(STATE)?.0))
        .filter(|matrix| matrix.ends_with(".weight"))
        .map(String::from)
        .collect();
    let mut tensors = Vec::new();
    let mut parts: BTreeMap<String, BTreeMap<String, Part>> = BTreeMap::new();
    for stored in found {
        let Some(matrix) = matrix_of(&stored.name).filter(|name| matrices.contains(*name)) else {
            tensors.push(stored);
            continue;
        };
        let name = stored.name[matrix.len() - WEIGHT.len()..].to_string();
        let bad = |reason: &str| LoadError::Quantized {
            path: path.to_path_buf(),
            tensor: matrix.to_string(),
            reason: format!("`{name}` {reason}"),
        };
        let Encoding::Plain { dtype, values } = stored.encoding else {
            return Err(bad("is quantized in another way besides"));
        };
        let part = Part {
            dtype,
            shape: stored.shape,
            values,
        };
        let parts = parts.entry(matrix.to_string()).or_default();
        if parts.insert(name.clone(), part).is_some() {
            return Err(bad("is there twice"));
        }
    }
    for (name, parts) in parts {
        let shape = shape(&parts, shards).map_err(|reason| LoadError::Quantized {
            path: path.to_path_buf(),
            tensor: name.clone(),
            reason,
        })?;
        tensors.push(Stored {
            name,
            shape,
            encoding: Encoding::Parts(parts),
        });
    }
    Ok(tensors)
}

/// The matrix that a tensor would be a part of.
fn matrix_of(name: &str) -> Option<&str> {
    if name.ends_with(".weight") {
        return Some(name);
    }
    let (matrix, _) = name.rsplit_once(".weight.")?;
    Some(&name[..matrix.len() + 1 + WEIGHT.len()])
}

/// The shape in the settings.
fn shape(parts: &BTreeMap<String, Part>, shards: &mut [Shard]) -> Result<Vec<usize>, String> {
    if !parts.contains_key(WEIGHT) {
        return Err(format!("`{WEIGHT}` is missing"));
    }
    let state = parts.iter().find(|(name, _)| name.contains(STATE));
    let (name, part) = state.ok_or("its settings are missing")?;
    if part.values.bytes > MAX_STATE {
        return Err(format!(
            "`{name}` has {} bytes; at most {MAX_STATE} are read",
            part.values.bytes
        ));
    }
    let bytes = shards[part.values.shard]
        .bytes(part.values)
        .map_err(|error| error.to_string())?;
    let state: State = serde_json::from_slice(&bytes)
        .map_err(|error| format!("`{name}` is no settings of bitsandbytes: {error}"))?;
    Ok(state.shape)
}

/// What Burn calls a number format, if a part may have it.
fn number_format(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        _ => return None,
    })
}

/// What `read` makes of a matrix that is stored in parts; nothing if it is not.
pub(super) fn read(
    checkpoint: &mut Checkpoint,
    name: &str,
    read: &mut ReadParts<'_>,
) -> Result<Option<QuantizedWeight>, LoadError> {
    let stored = &checkpoint.tensors[name];
    let Encoding::Parts(parts) = &stored.encoding else {
        return Ok(None);
    };
    let mut bytes = BTreeMap::new();
    for (name, part) in parts {
        let Some(dtype) = number_format(part.dtype) else {
            let reason = format!("`{name}` is stored as {}, which is not read", part.dtype);
            return Err(checkpoint.packed_error(stored, reason));
        };
        let stored = RawTensor {
            dtype,
            shape: part.shape.clone(),
            bytes: checkpoint.shards[part.values.shard].bytes(part.values)?,
        };
        bytes.insert(name.clone(), stored);
    }
    let reason = match read(&bytes) {
        Ok(Some(quantized)) if quantized.shape() == stored.shape[..] => return Ok(Some(quantized)),
        Ok(Some(quantized)) => format!(
            "the quantizer made a matrix of shape {:?} of it, and not {:?}",
            quantized.shape(),
            stored.shape
        ),
        Ok(None) => NEEDS_PACKER.to_string(),
        Err(peft_core::Error::Packing { reason, .. }) => reason,
        Err(other) => return Err(other.into()),
    };
    Err(checkpoint.packed_error(stored, reason))
}

#[cfg(test)]
mod tests {
    use super::matrix_of;

    #[test]
    fn parts_are_known_by_their_names() {
        for (name, matrix) in [
            ("a.weight", Some("a.weight")),
            ("a.weight.absmax", Some("a.weight")),
            ("a.weight.quant_state.bitsandbytes__nf4", Some("a.weight")),
            ("a.weight.b.weight.absmax", Some("a.weight.b.weight")),
            ("a.bias", None),
            ("a.weights.absmax", None),
            ("weight.absmax", None),
            ("", None),
        ] {
            assert_eq!(matrix_of(name), matrix, "{name}");
        }
    }
}

//! The 4-bit storage of the crate `pocket-encoder` (`q4-symmetric-g32-f16-v1`).
//!
//! A matrix `x` is stored as `x.q4`, two codes a byte with the low nibble first, and `x.scales`, an
//! f16 for each group of 32 in row-major order: a value is `(code - 8) * scale`. Its shape is in
//! `shapes.json` beside the file. One-dimensional tensors are stored plainly.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use safetensors::Dtype;

use super::{Encoding, Shard, Slice, Stored};
use crate::LoadError;

/// Values that share a scale.
const GROUP: usize = 32;

const SHAPES: &str = "shapes.json";
const CODES: &str = ".q4";
const SCALES: &str = ".scales";

/// `found`, with codes and scales joined to one tensor. Files without quantized tensors pass as is.
pub(super) fn dequantize(
    dir: &Path,
    path: &Path,
    found: Vec<Stored>,
) -> Result<Vec<Stored>, LoadError> {
    if !found.iter().any(|stored| stored.name.ends_with(CODES)) {
        return Ok(found);
    }
    let shapes: BTreeMap<String, Vec<usize>> = super::read_json(&dir.join(SHAPES))?;
    let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
    for stored in found {
        if let Some(twin) = tensors.insert(stored.name.clone(), stored) {
            return Err(LoadError::Header {
                path: path.to_path_buf(),
                reason: format!("it holds `{}` twice", twin.name),
            });
        }
    }
    let quantized: Vec<String> = tensors
        .keys()
        .filter_map(|name| name.strip_suffix(CODES))
        .map(String::from)
        .collect();
    for name in quantized {
        let bad = |reason: String| LoadError::Quantized {
            path: path.to_path_buf(),
            tensor: name.clone(),
            reason,
        };
        let shape = shapes
            .get(&name)
            .ok_or_else(|| bad(format!("{SHAPES} has no shape for it")))?;
        let count = shape
            .iter()
            .try_fold(1usize, |count, &axis| count.checked_mul(axis))
            .ok_or_else(|| bad(format!("the shape {shape:?} in {SHAPES} is too large")))?;
        let mut part = |suffix: &str, dtype: Dtype, bytes: usize| {
            let stored = tensors
                .remove(&format!("{name}{suffix}"))
                .ok_or_else(|| bad(format!("`{name}{suffix}` is missing")))?;
            match stored.encoding {
                Encoding::Plain {
                    dtype: found,
                    values,
                } if found == dtype && values.bytes == bytes => Ok(values),
                _ => Err(bad(format!(
                    "`{name}{suffix}` must hold {bytes} bytes of {dtype} for shape {shape:?}"
                ))),
            }
        };
        let codes = part(CODES, Dtype::U8, count.div_ceil(2))?;
        let scales = part(SCALES, Dtype::F16, 2 * count.div_ceil(GROUP))?;
        let encoding = Encoding::Quantized { codes, scales };
        let stored = Stored {
            name: name.clone(),
            shape: shape.clone(),
            encoding,
        };
        if tensors.insert(name.clone(), stored).is_some() {
            return Err(bad(format!("`{name}` is stored plainly besides")));
        }
    }
    Ok(tensors.into_values().collect())
}

/// The `count` values of a quantized tensor.
pub(super) fn read(
    shards: &mut [Shard],
    codes: Slice,
    scales: Slice,
    count: usize,
) -> Result<Vec<f32>, LoadError> {
    let mut factors: Vec<f32> = Vec::with_capacity(count.div_ceil(GROUP));
    shards[scales.shard].stream(scales, |bytes| {
        factors.extend(
            bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32()),
        );
    })?;
    let mut values: Vec<f32> = Vec::with_capacity(count + 1);
    shards[codes.shard].stream(codes, |bytes| {
        for byte in bytes {
            // A group is an even number of codes, so both nibbles share a scale.
            let factor = factors[values.len() / GROUP];
            values.push((f32::from(byte & 15) - 8.0) * factor);
            values.push((f32::from(byte >> 4) - 8.0) * factor);
        }
    })?;
    values.truncate(count);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(name: &str, dtype: Dtype, bytes: usize) -> Stored {
        let values = Slice {
            shard: 0,
            offset: 0,
            bytes,
        };
        Stored {
            name: name.to_string(),
            shape: vec![bytes],
            encoding: Encoding::Plain { dtype, values },
        }
    }

    #[test]
    fn a_matrix_is_stored_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(SHAPES), r#"{"x": [2, 32]}"#).unwrap();
        let path = dir.path().join("model.safetensors");
        let quantized = || {
            let codes = stored("x.q4", Dtype::U8, 32);
            vec![codes, stored("x.scales", Dtype::F16, 4)]
        };
        let joined = dequantize(dir.path(), &path, quantized()).unwrap();
        assert_eq!((joined.len(), joined[0].name.as_str()), (1, "x"));
        for other in ["x", "x.q4"] {
            let mut found = quantized();
            found.push(stored(other, Dtype::U8, 32));
            let Err(refused) = dequantize(dir.path(), &path, found) else {
                panic!("`{other}` is read twice");
            };
            let refused = refused.to_string();
            assert!(refused.contains(&format!("`{other}`")), "{refused}");
        }
    }
}

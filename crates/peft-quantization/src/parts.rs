//! A 4-bit matrix as the tensors that bitsandbytes and transformers keep of it in a checkpoint.

use std::collections::BTreeMap;

use burn::tensor::DType;
use peft_core::quantize::RawTensor as Part;
use serde::{Deserialize, Serialize};

use crate::dynamic::dynamic_map;
use crate::four_bit::check_block_size;
use crate::scales::NESTED_BLOCK;
use crate::{Error, FloatFormat, FourBit, FourBitKind, Result, Scales};

/// Beginning of the name of the part that holds the settings.
const STATE: &str = "weight.quant_state.bitsandbytes__";

/// Most that an entry of a table may differ from the standard one, as a share of it: tables are
/// computed, and not to the same last bit everywhere.
const TABLE_TOLERANCE: f32 = 1e-6;

/// A tensor of bytes.
fn of_bytes(bytes: Vec<u8>, shape: Vec<usize>) -> Part {
    Part {
        dtype: DType::U8,
        shape,
        bytes,
    }
}

/// A vector of floats.
fn of_floats(values: &[f32]) -> Part {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    Part {
        dtype: DType::F32,
        shape: vec![values.len()],
        bytes: bytes.collect(),
    }
}

/// What bitsandbytes packs as JSON into a tensor of bytes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    quant_type: FourBitKind,
    blocksize: usize,
    dtype: FloatFormat,
    shape: Vec<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<FloatFormat>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f64>,
}

impl FourBit {
    /// The matrix as checkpoints hold it, by names below the layer's.
    ///
    /// The codes are `weight`, `[bytes, 1]`; scales and tables are `weight.absmax`,
    /// `weight.quant_map`, `weight.nested_absmax` and `weight.nested_quant_map`; the settings are JSON
    /// in `weight.quant_state.bitsandbytes__nf4` (or `__fp4`). This is what bitsandbytes'
    /// `QuantState.as_dict(quantized=True)` gives and transformers saves.
    pub fn to_parts(&self) -> BTreeMap<String, Part> {
        let mut parts = BTreeMap::new();
        let mut put = |name: &str, part| parts.insert(name.to_string(), part);
        let mut state = State {
            quant_type: self.kind,
            blocksize: self.block_size,
            dtype: self.dtype,
            shape: self.shape.to_vec(),
            nested_blocksize: None,
            nested_dtype: None,
            nested_offset: None,
        };
        put(
            "weight",
            of_bytes(self.codes.clone(), vec![self.codes.len(), 1]),
        );
        put("weight.quant_map", of_floats(self.kind.values()));
        match &self.scales {
            Scales::Plain(scales) => {
                put("weight.absmax", of_floats(scales));
            }
            Scales::Nested {
                codes,
                absmax,
                offset,
            } => {
                put("weight.absmax", of_bytes(codes.clone(), vec![codes.len()]));
                put("weight.nested_absmax", of_floats(absmax));
                put("weight.nested_quant_map", of_floats(dynamic_map()));
                state.nested_blocksize = Some(NESTED_BLOCK);
                state.nested_dtype = Some(FloatFormat::Float32);
                state.nested_offset = Some(f64::from(*offset));
            }
        }
        let json = serde_json::to_vec(&state).expect("finite numbers and names are JSON");
        let length = json.len();
        put(
            &format!("{STATE}{}", self.kind),
            of_bytes(json, vec![length]),
        );
        parts
    }

    /// The matrix of a checkpoint, from the parts that [`to_parts`](Self::to_parts) describes, and
    /// no others. The codes may be stored under any number format (`bnb_4bit_quant_storage`).
    ///
    /// # Errors
    ///
    /// [`Error::Part`] or [`Error::Setting`] if a part is missing, unknown, of another length or
    /// format than the others ask for, or not finite, or if a table is not the standard one.
    /// Nothing larger than the parts is allocated before that is known.
    pub fn from_parts(parts: &BTreeMap<String, Part>) -> Result<Self> {
        let (state_name, state) = state(parts)?;
        check_block_size(state.blocksize)?;
        let &[rows, columns] = state.shape.as_slice() else {
            return Err(Error::part(
                &state_name,
                format!("says shape {:?}, but only matrices are read", state.shape),
            ));
        };
        let elements = rows.checked_mul(columns).filter(|elements| *elements > 0);
        let elements = elements.ok_or_else(|| {
            Error::part(
                &state_name,
                format!("says an impossible shape, [{rows}, {columns}]"),
            )
        })?;
        let blocks = elements.div_ceil(state.blocksize);
        let codes = &get(parts, "weight")?.bytes;
        check_length("weight", codes.len(), elements.div_ceil(2))?;
        check_table(parts, "weight.quant_map", state.quant_type.values())?;
        let mut known = vec![
            "weight",
            "weight.quant_map",
            "weight.absmax",
            state_name.as_str(),
        ];
        let nested = (
            state.nested_blocksize,
            state.nested_dtype,
            state.nested_offset,
        );
        let scales = match nested {
            (None, None, None) => {
                let scales = floats(parts, "weight.absmax", blocks)?;
                if let Some(index) = scales.iter().position(|scale| *scale < 0.0) {
                    return Err(Error::part(
                        "weight.absmax",
                        format!(
                            "is {} at {index}, but no magnitude is negative",
                            scales[index]
                        ),
                    ));
                }
                Scales::Plain(scales)
            }
            (Some(NESTED_BLOCK), Some(FloatFormat::Float32), Some(offset)) => {
                known.extend(["weight.nested_absmax", "weight.nested_quant_map"]);
                check_table(parts, "weight.nested_quant_map", dynamic_map())?;
                nested_scales(parts, blocks, offset as f32)?
            }
            _ => {
                return Err(Error::part(
                    &state_name,
                    format!(
                        "says (nested_blocksize, nested_dtype, nested_offset) = {nested:?}, but must \
                         have all or none, with blocks of {NESTED_BLOCK} in float32"
                    ),
                ));
            }
        };
        if let Some(name) = parts.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(Error::part(
                name,
                format!(
                    "is no part of this weight; its parts are {}",
                    known.join(", ")
                ),
            ));
        }
        Ok(Self {
            kind: state.quant_type,
            block_size: state.blocksize,
            shape: [rows, columns],
            codes: codes.clone(),
            scales,
            dtype: state.dtype,
        })
    }
}

/// The settings, and the name of the part they are in.
fn state(parts: &BTreeMap<String, Part>) -> Result<(String, State)> {
    let mut found = parts.iter().filter(|(name, _)| name.starts_with(STATE));
    let (Some((name, part)), None) = (found.next(), found.next()) else {
        let wanted = [FourBitKind::Nf4, FourBitKind::Fp4].map(|kind| format!("{STATE}{kind}"));
        return Err(Error::part(
            &wanted.join("` or `"),
            "must be there, one of the two",
        ));
    };
    if part.dtype != DType::U8 {
        let reason = format!("is stored as {:?}, but must be U8", part.dtype);
        return Err(Error::part(name, reason));
    }
    let state: State = serde_json::from_slice(&part.bytes)
        .map_err(|error| Error::part(name, format!("is no settings of bitsandbytes: {error}")))?;
    if name.strip_prefix(STATE) != Some(state.quant_type.name()) {
        let reason = format!(
            "says quant_type {}, not what its name does",
            state.quant_type
        );
        return Err(Error::part(name, reason));
    }
    Ok((name.clone(), state))
}

fn nested_scales(parts: &BTreeMap<String, Part>, blocks: usize, offset: f32) -> Result<Scales> {
    let part = get(parts, "weight.absmax")?;
    if part.dtype != DType::U8 {
        return Err(Error::part(
            "weight.absmax",
            format!(
                "is stored as {:?}, but must be U8 with nested scales",
                part.dtype
            ),
        ));
    }
    check_length("weight.absmax", part.bytes.len(), blocks)?;
    let absmax = floats(parts, "weight.nested_absmax", blocks.div_ceil(NESTED_BLOCK))?;
    let largest = absmax
        .iter()
        .fold(0.0, |most: f32, value| most.max(value.abs()));
    if !(offset.abs() + largest).is_finite() {
        return Err(Error::part(
            "weight.nested_absmax",
            format!("is up to {largest:e} at an offset of {offset:e}, which overflows"),
        ));
    }
    Ok(Scales::Nested {
        codes: part.bytes.clone(),
        absmax,
        offset,
    })
}

fn get<'a>(parts: &'a BTreeMap<String, Part>, name: &str) -> Result<&'a Part> {
    let found = parts.get(name);
    let part = found.ok_or_else(|| Error::part(name, "is missing"))?;
    let elements = part
        .shape
        .iter()
        .try_fold(1_usize, |all, &size| all.checked_mul(size));
    let length = elements.and_then(|elements| elements.checked_mul(part.dtype.size()));
    if length == Some(part.bytes.len()) {
        return Ok(part);
    }
    let Part {
        dtype,
        shape,
        bytes,
    } = part;
    let reason = format!(
        "has {} bytes, which are no {dtype:?} of shape {shape:?}",
        bytes.len()
    );
    Err(Error::part(name, reason))
}

fn check_length(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let reason = format!("has {found} bytes, but shape and block size ask for {expected}");
    Err(Error::part(name, reason))
}

fn floats(parts: &BTreeMap<String, Part>, name: &str, count: usize) -> Result<Vec<f32>> {
    let part = get(parts, name)?;
    if part.dtype != DType::F32 {
        let reason = format!("is stored as {:?}, but must be F32", part.dtype);
        return Err(Error::part(name, reason));
    }
    check_length(
        name,
        part.bytes.len(),
        count.saturating_mul(size_of::<f32>()),
    )?;
    let values = part.bytes.as_chunks::<4>().0.iter();
    let values: Vec<f32> = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(values),
        Some(value) => Err(Error::part(
            name,
            format!("holds {value}; all must be finite"),
        )),
    }
}

fn check_table(parts: &BTreeMap<String, Part>, name: &str, standard: &[f32]) -> Result<()> {
    let table = floats(parts, name, standard.len())?;
    let off = |(entry, standard): (&f32, &f32)| {
        (entry - standard).abs() > TABLE_TOLERANCE * standard.abs()
    };
    match table.iter().zip(standard).position(off) {
        None => Ok(()),
        Some(index) => Err(Error::part(
            name,
            format!(
                "is {} at {index}, but {} in the standard table, the only one that is read",
                table[index], standard[index]
            ),
        )),
    }
}

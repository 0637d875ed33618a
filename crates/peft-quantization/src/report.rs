//! Comparison with a file of bitsandbytes' results.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::dynamic::dynamic_map;
use crate::{BLOCK_SIZES, Error, FourBit, FourBitKind, FourBitOptions, Result, Scales};

/// What one case of a file and this crate's results differ in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuantCase {
    /// The case, as in `square.nf4.b64`; `dq` in place of the block size is double quantization.
    pub name: String,
    /// Kind of the codes.
    pub kind: FourBitKind,
    /// Elements that share a scale.
    pub block_size: usize,
    /// Whether the scales are quantized, too.
    pub double_quantization: bool,
    /// Number of elements.
    pub elements: usize,
    /// Bytes of codes that differ.
    pub codes_differ: usize,
    /// Codes of scales that differ; 0 where scales are plain.
    pub scale_codes_differ: usize,
    /// Largest difference of an absolute maximum, of either level, or of the offset, in units in
    /// the last place.
    pub scale_ulp: u64,
    /// Entries of the second quantization's table that differ; 0 where scales are plain.
    pub table_differs: usize,
    /// Largest difference of a decoded value, in units in the last place of the file's.
    pub value_ulp: u64,
    /// Whether the file's values have the scales of other blocks, as bitsandbytes' AVX-512 kernel
    /// decodes rows that do not end with a block. `value_ulp` then is against our codes and scales
    /// decoded in the same way.
    pub misplaced_scales: bool,
}

impl QuantCase {
    /// Whether all codes are the same, and all scales and values to two units in the last place.
    pub fn agrees(&self) -> bool {
        self.codes_differ == 0
            && self.scale_codes_differ == 0
            && self.table_differs == 0
            && self.scale_ulp <= 2
            && self.value_ulp <= 2
    }
}

impl std::fmt::Display for QuantCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            elements,
            codes_differ,
            scale_codes_differ,
            scale_ulp,
            table_differs,
            value_ulp,
            ..
        } = self;
        write!(
            f,
            "{name}: {elements} elements; differ: {codes_differ} bytes of codes, \
             {scale_codes_differ} codes of scales, {table_differs} entries of the table, \
             scales by {scale_ulp} ulp, values by {value_ulp} ulp"
        )?;
        if self.misplaced_scales {
            f.write_str(" (with scales of other blocks, as bitsandbytes' AVX-512 kernel decodes)")?;
        }
        Ok(())
    }
}

/// Quantizes the inputs of a safetensors file and compares the results with the file's.
///
/// An input is `<name>.x` (F32, a matrix). Results of it are `<name>.<nf4 or fp4>.b<block size>.` with
/// `quantized`, `absmax` and `dequant`, or `<name>.<nf4 or fp4>.dq.` with `quantized`, `absmax_u8`, `offset`,
/// `nested_absmax`, `nested_code` and `dequant`. Cases are sorted by name.
///
/// # Errors
///
/// - [`Error::Io`] if the file cannot be read.
/// - [`Error::File`] if it is not laid out so, or has no case.
/// - What [`FourBit::quantize`] says to its inputs.
pub fn report(path: impl AsRef<Path>) -> Result<Vec<QuantCase>> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_path_buf(),
        source,
    })?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| Error::File {
        path: path.to_path_buf(),
        reason: format!("is no safetensors file: {error}"),
    })?;
    let file = File { path, tensors };
    let mut names = file.tensors.names();
    names.sort_unstable();
    let cases: Vec<QuantCase> = names
        .into_iter()
        .filter_map(|name| name.strip_suffix(".packed"))
        .map(|case| file.case(case))
        .collect::<Result<_>>()?;
    if cases.is_empty() {
        return Err(file.wrong("has no tensor whose name ends in `.packed`".to_string()));
    }
    Ok(cases)
}

struct File<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
}

impl File<'_> {
    fn wrong(&self, reason: String) -> Error {
        Error::File {
            path: self.path.to_path_buf(),
            reason,
        }
    }

    fn bytes(&self, name: &str, dtype: Dtype) -> Result<&[u8]> {
        let tensor = self.tensors.tensor(name);
        let tensor = tensor.map_err(|_| self.wrong(format!("lacks tensor `{name}`")))?;
        if tensor.dtype() == dtype {
            return Ok(tensor.data());
        }
        let found = tensor.dtype();
        Err(self.wrong(format!(
            "tensor `{name}` is {found:?}, but must be {dtype:?}"
        )))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let bytes = self.bytes(name, Dtype::F32)?.as_chunks::<4>().0.iter();
        Ok(bytes.map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Rows and columns of a matrix; all dimensions but the last are rows.
    fn shape(&self, name: &str) -> Result<[usize; 2]> {
        let tensor = self.tensors.tensor(name);
        let tensor = tensor.map_err(|_| self.wrong(format!("lacks tensor `{name}`")))?;
        match tensor.shape() {
            [rows @ .., columns] => Ok([rows.iter().product(), *columns]),
            [] => Err(self.wrong(format!("tensor `{name}` has no dimension"))),
        }
    }

    fn case(&self, case: &str) -> Result<QuantCase> {
        let mut parts = case.rsplitn(3, '.');
        let (variant, kind, name) = (parts.next(), parts.next(), parts.next());
        let kind = match kind {
            Some("nf4") => FourBitKind::Nf4,
            Some("fp4") => FourBitKind::Fp4,
            _ => return Err(self.wrong(format!("`{case}` is of neither `nf4` nor `fp4`"))),
        };
        let input = format!("{}.x", name.unwrap_or_default());
        let (values, shape) = (self.floats(&input)?, self.shape(&input)?);
        let double_quantization = variant == Some("dq");
        let block_size = if double_quantization {
            // Not in the name: 64, unless there are not that many scales.
            let scales = self.bytes(&format!("{case}.absmax_u8"), Dtype::U8)?.len();
            let fits = |size: &usize| values.len().div_ceil(*size) == scales;
            Some(64)
                .filter(fits)
                .or_else(|| BLOCK_SIZES.into_iter().find(fits))
        } else {
            let digits = variant.and_then(|variant| variant.strip_prefix('b'));
            digits.and_then(|digits| digits.parse().ok())
        };
        let block_size = block_size.ok_or_else(|| {
            self.wrong(format!(
                "`{case}` says no block size that fits: `b64` or `dq` must end its name"
            ))
        })?;
        let options = FourBitOptions {
            kind,
            block_size,
            double_quantization,
        };
        let ours = FourBit::quantize(&values, shape, options)?;
        let mut found = QuantCase {
            name: case.to_string(),
            kind,
            block_size,
            double_quantization,
            elements: values.len(),
            codes_differ: differ(
                ours.codes(),
                self.bytes(&format!("{case}.packed"), Dtype::U8)?,
            ),
            scale_codes_differ: 0,
            scale_ulp: 0,
            table_differs: 0,
            value_ulp: 0,
            misplaced_scales: false,
        };
        self.compare_scales(&ours, &mut found)?;
        self.compare_values(&ours, shape, &mut found)?;
        Ok(found)
    }

    fn compare_scales(&self, ours: &FourBit, found: &mut QuantCase) -> Result<()> {
        let case = &found.name;
        match ours.scales() {
            Scales::Plain(scales) => {
                found.scale_ulp = largest_ulp(scales, &self.floats(&format!("{case}.absmax"))?);
            }
            Scales::Nested {
                codes,
                absmax,
                offset,
            } => {
                let theirs = self.bytes(&format!("{case}.absmax_u8"), Dtype::U8)?;
                let nested = largest_ulp(absmax, &self.floats(&format!("{case}.nested_absmax"))?);
                let mean = largest_ulp(&[*offset], &self.floats(&format!("{case}.offset"))?);
                let table = self.floats(&format!("{case}.nested_code"))?;
                found.scale_codes_differ = differ(codes, theirs);
                found.scale_ulp = nested.max(mean);
                found.table_differs = differ(&bits(dynamic_map()), &bits(&table));
            }
        }
        Ok(())
    }

    fn compare_values(
        &self,
        ours: &FourBit,
        shape: [usize; 2],
        found: &mut QuantCase,
    ) -> Result<()> {
        let theirs = self.floats(&format!("{}.dequant", found.name))?;
        found.value_ulp = largest_ulp(&ours.to_values(), &theirs);
        let block_size = found.block_size;
        let vectors = shape[1].is_multiple_of(16) && !shape[1].is_multiple_of(block_size);
        if found.value_ulp > 2 && vectors && block_size < 2048 {
            let misplaced = largest_ulp(&with_misplaced_scales(ours, shape), &theirs);
            if misplaced <= 2 {
                found.value_ulp = misplaced;
                found.misplaced_scales = true;
            }
        }
        Ok(())
    }
}

/// The values with the scales that bitsandbytes' AVX-512 kernel takes: it counts ⌊columns / block size⌋
/// blocks a row.
fn with_misplaced_scales(matrix: &FourBit, [rows, columns]: [usize; 2]) -> Vec<f32> {
    let block_size = matrix.block_size();
    let pairs = &matrix.kind().table().pairs;
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let at = row * columns + column;
            let value = pairs[usize::from(matrix.codes()[at / 2])][at % 2];
            let block = row * (columns / block_size) + column / block_size;
            values.push(value * matrix.scales().get(block));
        }
    }
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Number of places at which two slices differ; those that one lacks are among them.
fn differ<T: PartialEq>(ours: &[T], theirs: &[T]) -> usize {
    let pairs = ours.iter().zip(theirs);
    pairs.filter(|(ours, theirs)| ours != theirs).count() + ours.len().abs_diff(theirs.len())
}

/// Largest distance in units in the last place; the largest number there is if lengths differ or a NaN
/// is among them.
fn largest_ulp(ours: &[f32], theirs: &[f32]) -> u64 {
    if ours.len() != theirs.len() {
        return u64::MAX;
    }
    let distance = |(ours, theirs): (&f32, &f32)| {
        if ours.is_nan() || theirs.is_nan() {
            return u64::MAX;
        }
        place(*ours).abs_diff(place(*theirs))
    };
    ours.iter().zip(theirs).map(distance).max().unwrap_or(0)
}

/// The number of a float in the order of all floats; both zeros are 0.
fn place(value: f32) -> i64 {
    let magnitude = i64::from(value.abs().to_bits());
    if value.is_sign_negative() {
        -magnitude
    } else {
        magnitude
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_over_zero() {
        let tiny = f32::from_bits(1);
        assert_eq!(largest_ulp(&[0.0, 1.0], &[-0.0, 1.0]), 0);
        assert_eq!(largest_ulp(&[tiny], &[-tiny]), 2);
        assert_eq!(largest_ulp(&[1.0, -1.0], &[1.0_f32.next_up(), -1.0]), 1);
        assert_eq!(largest_ulp(&[1.0], &[f32::NAN]), u64::MAX);
        assert_eq!(largest_ulp(&[1.0], &[]), u64::MAX);
        assert_eq!(differ(&[1, 2, 3], &[1, 4]), 2);
    }
}

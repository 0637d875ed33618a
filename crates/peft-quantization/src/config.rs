//! Which weights are quantized in which format, with the fields of transformers' `BitsAndBytesConfig`.

use std::collections::BTreeMap;

use burn::tensor::Device;
use burn::tensor::quantization::QuantStore;
use peft_core::device::cpu_devices;
use peft_core::method::LayerKind;
use peft_core::quantize::{QuantizedLayer, RawTensor, WeightQuantizer};
use peft_ops::quantized::QuantizedWeight;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::four_bit::check_block_size;
use crate::{
    BurnRows, BurnScheme, Error, FloatFormat, FourBit, FourBitKind, FourBitOptions, HalfRows,
    Result,
};

/// Number formats in which upstream may store codes.
const STORAGES: [&str; 4] = ["uint8", "float16", "bfloat16", "float32"];

/// How embedding tables and output heads are kept: they are not quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Tables {
    /// As they are.
    Float32,
    /// In 16 bits, as upstream loads what it does not quantize.
    #[default]
    Bfloat16,
}

/// Which weights are quantized, and how. A [`WeightQuantizer`]: for loading a model, or packing one that is there.
///
/// Linear layers are quantized, but heads and those that `llm_int8_skip_modules` names. Embedding
/// tables and heads are kept as `tables` says, everything else stays as it is.
///
/// What a checkpoint holds in bitsandbytes' 4 bits already stays bit by bit as it is, whatever type, block
/// size and skipped modules are set here. What it holds dense beside that is treated as said above.
///
/// Fields are called as in transformers' `BitsAndBytesConfig`, and a `quantization_config` of a
/// `config.json` can be read into it ([`load`](Self::load)); its other fields are ignored, and what is
/// missing has upstream's default. The last five fields are ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the fields are those of transformers' configuration"
)]
pub struct QuantizationConfig {
    /// Quantize to 4 bits. Default false; set by [`nf4`](Self::nf4) and [`fp4`](Self::fp4).
    pub load_in_4bit: bool,
    /// Upstream's LLM.int8(), which is not supported: [`int8`](Self::int8) is. Default false.
    pub load_in_8bit: bool,
    /// `nf4` or `fp4`. Default `fp4`, as upstream; the paper recommends `nf4`.
    pub bnb_4bit_quant_type: FourBitKind,
    /// Whether scales are quantized, too: 0.37 bits less for a weight. Default false.
    pub bnb_4bit_use_double_quant: bool,
    /// What upstream computes in. Default `float32`; kept for files, as everything here is computed
    /// in `float32`.
    pub bnb_4bit_compute_dtype: FloatFormat,
    /// Number format under which upstream stores codes: `uint8`, `float16`, `bfloat16` or
    /// `float32`. Default `uint8`, which is what is written here; files with any are read.
    pub bnb_4bit_quant_storage: String,
    /// Layers that are not quantized, by name or part of a name between dots. Default none: heads
    /// never are.
    pub llm_int8_skip_modules: Option<Vec<String>>,
    /// Elements that share a scale: a power of two from 32 to 4096. Default 64, which is what
    /// upstream always has.
    pub bnb_4bit_blocksize: usize,
    /// How embedding tables and heads are kept. Default `bfloat16`.
    pub tables: Tables,
    /// Burn's integers in place of bitsandbytes' formats. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burn_scheme: Option<BurnScheme>,
    /// Columns that share a scale of Burn's integers, a divisor of the layers' inputs; none for one
    /// scale a matrix. Default 32.
    pub burn_block_size: Option<u8>,
    /// Round linear layers to bfloat16, and quantize none: half of the memory. Default false; set by
    /// [`bf16`](Self::bf16).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub load_in_bfloat16: bool,
}

impl Default for QuantizationConfig {
    fn default() -> Self {
        Self {
            load_in_4bit: false,
            load_in_8bit: false,
            bnb_4bit_quant_type: FourBitKind::Fp4,
            bnb_4bit_use_double_quant: false,
            bnb_4bit_compute_dtype: FloatFormat::Float32,
            bnb_4bit_quant_storage: "uint8".to_string(),
            llm_int8_skip_modules: None,
            bnb_4bit_blocksize: 64,
            tables: Tables::Bfloat16,
            burn_scheme: None,
            burn_block_size: Some(32),
            load_in_bfloat16: false,
        }
    }
}

impl QuantizationConfig {
    /// NormalFloat in blocks of 64: QLoRA's format, with
    /// [`with_double_quantization`](Self::with_double_quantization).
    pub fn nf4() -> Self {
        Self {
            load_in_4bit: true,
            bnb_4bit_quant_type: FourBitKind::Nf4,
            ..Self::default()
        }
    }

    /// 4-bit floats in blocks of 64.
    pub fn fp4() -> Self {
        Self {
            load_in_4bit: true,
            ..Self::default()
        }
    }

    /// Burn's 8-bit integers, a scale for every 32 columns.
    pub fn int8() -> Self {
        Self {
            burn_scheme: Some(BurnScheme::Int8),
            ..Self::default()
        }
    }

    /// Burn's 4-bit integers, a scale for every 32 columns.
    pub fn int4() -> Self {
        Self {
            burn_scheme: Some(BurnScheme::Int4),
            ..Self::default()
        }
    }

    /// No quantization: linear layers, tables and heads in bfloat16. The form of a base that mixed precision
    /// ([`MixedPrecision`](peft_ops::MixedPrecision)) loses nothing more of.
    pub fn bf16() -> Self {
        Self {
            load_in_bfloat16: true,
            ..Self::default()
        }
    }

    /// Sets `bnb_4bit_use_double_quant`.
    #[must_use]
    pub fn with_double_quantization(mut self, on: bool) -> Self {
        self.bnb_4bit_use_double_quant = on;
        self
    }

    /// Sets `bnb_4bit_blocksize`.
    #[must_use]
    pub fn with_block_size(mut self, block_size: usize) -> Self {
        self.bnb_4bit_blocksize = block_size;
        self
    }

    /// Sets `burn_block_size`.
    #[must_use]
    pub fn with_burn_block_size(mut self, block_size: Option<u8>) -> Self {
        self.burn_block_size = block_size;
        self
    }

    /// Sets `llm_int8_skip_modules`.
    #[must_use]
    pub fn with_skip_modules<S: Into<String>>(
        mut self,
        modules: impl IntoIterator<Item = S>,
    ) -> Self {
        self.llm_int8_skip_modules = Some(modules.into_iter().map(Into::into).collect());
        self
    }

    /// Sets `tables`.
    #[must_use]
    pub fn with_tables(mut self, tables: Tables) -> Self {
        self.tables = tables;
        self
    }

    /// Checks the fields; packing does it, too.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] with the first field that cannot be.
    pub fn validate(&self) -> Result<()> {
        if self.load_in_8bit {
            return Err(Error::setting(
                "load_in_8bit",
                true,
                "false: LLM.int8() is not supported; take `QuantizationConfig::int8()`",
            ));
        }
        let forms = [
            self.load_in_4bit,
            self.burn_scheme.is_some(),
            self.load_in_bfloat16,
        ];
        if forms.into_iter().filter(|form| *form).count() != 1 {
            return Err(Error::setting(
                "load_in_4bit",
                self.load_in_4bit,
                "true where there is neither `burn_scheme` nor `load_in_bfloat16`, and false where there is one of \
                 them",
            ));
        }
        check_block_size(self.bnb_4bit_blocksize)?;
        if !STORAGES.contains(&self.bnb_4bit_quant_storage.as_str()) {
            return Err(Error::setting(
                "bnb_4bit_quant_storage",
                &self.bnb_4bit_quant_storage,
                format!("one of {}", STORAGES.join(", ")),
            ));
        }
        if self.burn_block_size == Some(0) {
            return Err(Error::setting(
                "burn_block_size",
                0,
                "none, or from 1 to 255",
            ));
        }
        let mut skipped = self.llm_int8_skip_modules.iter().flatten();
        if skipped.any(String::is_empty) {
            return Err(Error::setting(
                "llm_int8_skip_modules",
                "a list with an empty name",
                "names of modules",
            ));
        }
        Ok(())
    }

    /// Quantizes a matrix as this says, `values` row-major of `shape` `[out, in]`.
    ///
    /// # Errors
    ///
    /// Those of [`validate`](Self::validate), [`FourBit::quantize`] and [`BurnRows::quantize`];
    /// [`Error::Scheme`] for `int4` where the only CPU backend is `ndarray`, which has 8 bits only.
    pub fn quantize(&self, values: &[f32], shape: [usize; 2]) -> Result<QuantizedWeight> {
        self.validate()?;
        if self.load_in_bfloat16 {
            return Ok(QuantizedWeight::new(HalfRows::bf16(values, shape)?));
        }
        let Some(integers) = self.burn_scheme else {
            let matrix = FourBit::quantize(values, shape, self.four_bit_options())?;
            return Ok(QuantizedWeight::new(matrix));
        };
        let (device, store) = match cpu_devices().into_iter().next() {
            Some(("ndarray", _)) if integers == BurnScheme::Int4 => {
                return Err(Error::Scheme {
                    reason: "`ndarray` has no 4-bit integers; compile with the feature `flex`"
                        .to_string(),
                });
            }
            Some(("flex" | "ndarray", device)) => (device, QuantStore::Native),
            Some((_, device)) => (device, QuantStore::PackedU32(0)),
            None => (Device::default(), QuantStore::PackedU32(0)),
        };
        let scheme = integers.scheme(self.burn_block_size, store);
        let rows = BurnRows::quantize(values, shape, &scheme, &device)?;
        Ok(QuantizedWeight::new(rows))
    }

    /// How matrices are quantized to 4 bits.
    pub(crate) fn four_bit_options(&self) -> FourBitOptions {
        FourBitOptions {
            kind: self.bnb_4bit_quant_type,
            block_size: self.bnb_4bit_blocksize,
            double_quantization: self.bnb_4bit_use_double_quant,
        }
    }

    /// Whether `llm_int8_skip_modules` names the layer or a module it is in.
    fn skips(&self, layer: &str) -> bool {
        let layer = format!(".{layer}.");
        let mut modules = self.llm_int8_skip_modules.iter().flatten();
        modules.any(|module| layer.contains(&format!(".{module}.")))
    }

    /// What becomes of a layer's weight.
    pub(crate) fn storage(&self, layer: QuantizedLayer<'_>) -> Storage {
        if layer.head || *layer.kind == LayerKind::Embedding {
            match self.tables {
                Tables::Float32 => Storage::Dense,
                Tables::Bfloat16 => Storage::Bfloat16,
            }
        } else if *layer.kind == LayerKind::Linear && !self.skips(layer.name) {
            if self.load_in_bfloat16 {
                return Storage::Bfloat16;
            }
            Storage::Quantized
        } else {
            Storage::Dense
        }
    }

    fn quantized(
        &self,
        layer: QuantizedLayer<'_>,
        values: &[f32],
    ) -> Result<Option<QuantizedWeight>> {
        self.validate()?;
        match self.storage(layer) {
            Storage::Dense => Ok(None),
            Storage::Bfloat16 => {
                let rows = HalfRows::bf16(values, layer.shape)?;
                Ok(Some(QuantizedWeight::new(rows)))
            }
            Storage::Quantized => self.quantize(values, layer.shape).map(Some),
        }
    }
}

impl WeightQuantizer for QuantizationConfig {
    fn pack(
        &self,
        layer: QuantizedLayer<'_>,
        values: &[f32],
    ) -> peft_core::Result<Option<QuantizedWeight>> {
        self.quantized(layer, values)
            .map_err(|error| refused(layer.name, error))
    }

    fn wants(&self, layer: QuantizedLayer<'_>) -> bool {
        self.storage(layer) != Storage::Dense
    }

    fn read_parts(
        &self,
        layer: QuantizedLayer<'_>,
        parts: &BTreeMap<String, RawTensor>,
    ) -> peft_core::Result<Option<QuantizedWeight>> {
        self.read(parts).map_err(|error| refused(layer.name, error))
    }

    fn write_parts(
        &self,
        layer: &str,
        rows: &QuantizedWeight,
    ) -> peft_core::Result<Option<BTreeMap<String, RawTensor>>> {
        self.write(rows).map_err(|error| refused(layer, error))
    }

    fn quantization_config(&self, dense: &[String]) -> Option<Value> {
        self.load_in_4bit.then(|| self.upstreams_json(dense))
    }
}

/// The error about a layer.
pub(crate) fn refused(layer: &str, error: Error) -> peft_core::Error {
    peft_core::Error::Packing {
        layer: layer.to_string(),
        reason: error.to_string(),
    }
}

/// What becomes of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    Dense,
    Bfloat16,
    Quantized,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer<'a>(name: &'a str, kind: &'a LayerKind, head: bool) -> QuantizedLayer<'a> {
        QuantizedLayer {
            name,
            kind,
            head,
            shape: [4, 64],
        }
    }

    #[test]
    fn upstreams_file_is_read() {
        let json = r#"{
            "_load_in_4bit": true, "load_in_4bit": true, "load_in_8bit": false,
            "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true,
            "llm_int8_skip_modules": null, "llm_int8_threshold": 6.0, "quant_method": "bitsandbytes"
        }"#;
        let read: QuantizationConfig = serde_json::from_str(json).unwrap();
        let mut expected = QuantizationConfig::nf4().with_double_quantization(true);
        expected.bnb_4bit_compute_dtype = FloatFormat::Bfloat16;
        assert_eq!(read, expected);
        let again = serde_json::to_string(&read).unwrap();
        assert_eq!(
            serde_json::from_str::<QuantizationConfig>(&again).unwrap(),
            read
        );
        let default: QuantizationConfig =
            serde_json::from_str(r#"{"load_in_4bit": true}"#).unwrap();
        assert_eq!(default, QuantizationConfig::fp4());
    }

    /// The format that a layer's weight gets, if it gets one.
    fn format(
        config: &QuantizationConfig,
        name: &str,
        kind: &LayerKind,
        head: bool,
    ) -> Option<String> {
        let layer = layer(name, kind, head);
        let quantized = config.pack(layer, &[0.25; 256]).unwrap();
        assert_eq!(config.wants(layer), quantized.is_some(), "{name}");
        quantized.map(|quantized| quantized.format().to_string())
    }

    #[test]
    fn layers_are_packed_by_what_they_are() {
        let config = QuantizationConfig::nf4().with_skip_modules(["mlp.down_proj", "model.last"]);
        for (name, expected) in [
            ("model.layers.0.self_attn.q_proj", Some("nf4")),
            ("model.layers.0.mlp.down_proj2", Some("nf4")),
            ("model.layers.0.mlp.down_proj", None),
            ("model.last.q_proj", None),
        ] {
            let found = format(&config, name, &LayerKind::Linear, false);
            assert_eq!(found.as_deref(), expected, "{name}");
        }
        assert_eq!(format(&config, "conv", &LayerKind::Conv1d, false), None);
        let dense = config.clone().with_tables(Tables::Float32);
        for (kind, head) in [(LayerKind::Linear, true), (LayerKind::Embedding, false)] {
            let found = format(&config, "table", &kind, head);
            assert_eq!(found.as_deref(), Some("bfloat16"));
            assert_eq!(format(&dense, "table", &kind, head), None);
        }
        let fp4 = format(&QuantizationConfig::fp4(), "q", &LayerKind::Linear, false);
        assert_eq!(fp4.as_deref(), Some("fp4"));
        let bf16 = QuantizationConfig::bf16().with_skip_modules(["skipped"]);
        for (name, expected) in [("q", Some("bfloat16")), ("skipped.q", None)] {
            let found = format(&bf16, name, &LayerKind::Linear, false);
            assert_eq!(found.as_deref(), expected);
        }
        let rows = bf16.quantize(&[0.3; 256], [4, 64]).unwrap();
        assert_eq!((rows.format(), rows.bytes()), ("bfloat16", 512));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut both = QuantizationConfig::nf4();
        both.burn_scheme = Some(BurnScheme::Int8);
        let mut two = QuantizationConfig::bf16();
        two.load_in_4bit = true;
        let eight = QuantizationConfig {
            load_in_8bit: true,
            ..QuantizationConfig::default()
        };
        let mut storage = QuantizationConfig::nf4();
        storage.bnb_4bit_quant_storage = "int3".to_string();
        for (wrong, field) in [
            (both, "load_in_4bit"),
            (two, "load_in_4bit"),
            (QuantizationConfig::default(), "load_in_4bit"),
            (eight, "load_in_8bit"),
            (storage, "bnb_4bit_quant_storage"),
            (
                QuantizationConfig::nf4().with_block_size(48),
                "bnb_4bit_blocksize",
            ),
            (
                QuantizationConfig::int8().with_burn_block_size(Some(0)),
                "burn_block_size",
            ),
            (
                QuantizationConfig::nf4().with_skip_modules([""]),
                "llm_int8_skip_modules",
            ),
        ] {
            let error = wrong.validate().unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
        let nan = [f32::NAN; 256];
        let config = QuantizationConfig::nf4();
        let error = config
            .pack(layer("model.q", &LayerKind::Linear, false), &nan)
            .unwrap_err();
        assert!(error.to_string().contains("model.q"), "{error}");
    }
}

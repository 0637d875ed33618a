//! Models that transformers saved in bitsandbytes' 4 bits: their configuration, and their weights' parts.

use std::collections::BTreeMap;
use std::path::Path;

use peft_core::quantize::RawTensor;
use peft_ops::quantized::QuantizedWeight;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, FourBit, QuantizationConfig, Result};

/// The one method of upstream's that is read.
const METHOD: &str = "bitsandbytes";

/// Upstream's name of the output head.
const HEAD: &str = "lm_head";

/// What is read of a `config.json`.
#[derive(Deserialize)]
struct ModelConfig {
    quantization_config: Option<Quantization>,
}

#[derive(Deserialize)]
struct Quantization {
    quant_method: Option<String>,
    #[serde(flatten)]
    config: QuantizationConfig,
}

impl QuantizationConfig {
    /// The `quantization_config` in the `config.json` of a folder that transformers saved in 4 bits: the quantizer
    /// that its checkpoint is to be loaded with. Fields that are ours alone have their defaults.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::File`] if there is none, or one of another method; those of
    /// [`validate`](Self::validate).
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        // Also where writing the folder was interrupted.
        let path = peft_core::files::readable(dir.as_ref(), "config.json", "config.json");
        let wrong = |reason: String| Error::File {
            path: path.clone(),
            reason,
        };
        let bytes = std::fs::read(&path).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?;
        let model: ModelConfig = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(format!("`quantization_config` cannot be read: {error}")))?;
        let Some(found) = model.quantization_config else {
            return Err(wrong(
                "has no `quantization_config`: the model is not quantized; \
                 take `QuantizationConfig::nf4()` to do it while it is loaded"
                    .to_string(),
            ));
        };
        if let Some(method) = found.quant_method.filter(|method| method != METHOD) {
            return Err(wrong(format!(
                "`quant_method` is `{method}`, but only `{METHOD}` is read"
            )));
        }
        found.config.validate()?;
        Ok(found.config)
    }

    /// A checkpoint's matrix, if matrices are to be in 4 bits.
    pub(crate) fn read(
        &self,
        parts: &BTreeMap<String, RawTensor>,
    ) -> Result<Option<QuantizedWeight>> {
        self.validate()?;
        if !self.load_in_4bit {
            return Ok(None);
        }
        Ok(Some(QuantizedWeight::new(FourBit::from_parts(parts)?)))
    }

    /// The parts of a matrix, if it is in 4 bits.
    pub(crate) fn write(
        &self,
        rows: &QuantizedWeight,
    ) -> Result<Option<BTreeMap<String, RawTensor>>> {
        self.validate()?;
        let Some(matrix) = rows.as_any().downcast_ref::<FourBit>() else {
            return Ok(None);
        };
        let options = matrix.options();
        if !self.load_in_4bit || options.kind != self.bnb_4bit_quant_type {
            return Err(Error::setting(
                "bnb_4bit_quant_type",
                if self.load_in_4bit {
                    self.bnb_4bit_quant_type.name()
                } else {
                    "none"
                },
                format!("{}, as the weight is", options.kind),
            ));
        }
        if options.double_quantization != self.bnb_4bit_use_double_quant {
            return Err(Error::setting(
                "bnb_4bit_use_double_quant",
                self.bnb_4bit_use_double_quant,
                format!("{}, as the weight is", options.double_quantization),
            ));
        }
        Ok(Some(matrix.to_parts()))
    }

    /// This as transformers writes it, for a model in which the layers `dense` are not quantized.
    pub(crate) fn upstreams_json(&self, dense: &[String]) -> Value {
        // Without a list upstream skips heads, with one just what it names.
        let skipped = if dense.iter().all(|layer| layer == HEAD) {
            Value::Null
        } else {
            let others = dense.iter().map(String::as_str);
            let others = others.filter(|name| *name != HEAD);
            std::iter::once(HEAD).chain(others).collect()
        };
        json!({
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "bnb_4bit_compute_dtype": self.bnb_4bit_compute_dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": self.bnb_4bit_quant_type,
            "bnb_4bit_use_double_quant": self.bnb_4bit_use_double_quant,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": skipped,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "quant_method": METHOD,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<QuantizationConfig> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        QuantizationConfig::load(dir.path())
    }

    #[test]
    fn what_is_written_is_read() {
        let config = QuantizationConfig::nf4().with_double_quantization(true);
        let written = |dense: &[&str]| {
            let dense: Vec<String> = dense.iter().map(|name| (*name).to_string()).collect();
            json!({ "quantization_config": config.upstreams_json(&dense) }).to_string()
        };
        assert_eq!(load(&written(&[])).unwrap(), config);
        assert_eq!(load(&written(&["lm_head"])).unwrap(), config);
        let skipping = config
            .clone()
            .with_skip_modules(["lm_head", "model.layers.3.mlp.up_proj"]);
        for dense in [
            &["model.layers.3.mlp.up_proj"][..],
            &["lm_head", "model.layers.3.mlp.up_proj"],
        ] {
            assert_eq!(load(&written(dense)).unwrap(), skipping);
        }
    }

    #[test]
    fn other_folders_are_refused() {
        for (text, word) in [
            ("{}", "not quantized"),
            ("[]", "config.json"),
            (
                r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#,
                "`gptq`",
            ),
            (
                r#"{"quantization_config": {"load_in_4bit": 3}}"#,
                "cannot be read",
            ),
            (
                r#"{"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}}"#,
                "load_in_8bit",
            ),
        ] {
            let refused = load(text).unwrap_err().to_string();
            assert!(refused.contains(word), "{refused}");
        }
        let missing = QuantizationConfig::load("no/such/folder").unwrap_err();
        assert!(matches!(missing, Error::Io { .. }));
    }

    #[test]
    fn another_format_than_that_of_the_configuration_is_not_written() {
        let nf4 = QuantizationConfig::nf4();
        let values: Vec<f32> = (0..128).map(|index| (index as f32).sin()).collect();
        let rows = nf4.quantize(&values, [2, 64]).unwrap();
        let parts = nf4.write(&rows).unwrap().unwrap();
        assert_eq!(parts.len(), 4);
        for (other, word) in [
            (QuantizationConfig::fp4(), "bnb_4bit_quant_type"),
            (QuantizationConfig::int8(), "bnb_4bit_quant_type"),
            (nf4.clone().with_double_quantization(true), "double_quant"),
        ] {
            let refused = other.write(&rows).unwrap_err().to_string();
            assert!(refused.contains(word), "{refused}");
        }
        let halves = crate::HalfRows::bf16(&values, [2, 64]).unwrap();
        assert!(nf4.write(&QuantizedWeight::new(halves)).unwrap().is_none());
        assert!(nf4.read(&parts).unwrap().is_some());
        assert!(QuantizationConfig::int8().read(&parts).unwrap().is_none());
    }
}

//! Writing models as folders that Hugging Face's `transformers` loads.

use std::collections::BTreeMap;
use std::path::Path;

use peft_core::ops::packed::Packed;
use peft_core::{LayerKind, Packer, PeftModule, TiedHead, Written, write_file};
use serde_json::Value;

use crate::{Llama, LlamaTokenizer, LoadError, RopeScaling};

const WEIGHTS: &str = "model.safetensors";

impl Llama {
    /// Writes the model as a folder that Hugging Face's `transformers` loads: `config.json` and
    /// `model.safetensors`, and the tokenizer's files where one is given. Adapters are not in it: export after
    /// [`merge_and_unload`](PeftModule::merge_and_unload) to have them folded in. Packed weights are written
    /// dense, with the values that they have; [`export_packed`](Self::export_packed) keeps them packed.
    ///
    /// # Errors
    ///
    /// - [`LoadError::Setting`] if the model's rotary embeddings are of a kind that `transformers` lacks: factors
    ///   of a GGUF file that are not those of Llama 3.
    /// - [`LoadError::Write`] and [`LoadError::Packing`].
    pub fn export(
        &self,
        dir: impl AsRef<Path>,
        tokenizer: Option<&LlamaTokenizer>,
    ) -> Result<(), LoadError> {
        self.check_rope()?;
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(failed(dir))?;
        self.save_model(dir.join(WEIGHTS))?;
        self.write_config(dir, None)?;
        match tokenizer {
            Some(tokenizer) => tokenizer.save(dir),
            None => Ok(()),
        }
    }

    /// Writes the model as [`export`](Self::export) does, but weights in the packed form that they have, in the
    /// parts that `packer` makes of them, and `quantization_config` in `config.json`: with peft-quantization's
    /// `QuantizationConfig` the 4-bit weights as transformers and bitsandbytes save them. What has no such parts
    /// (tables in 16 bits, Burn's integers) is written dense.
    ///
    /// Adapters are not in it and stay beside it: they belong to these weights.
    ///
    /// # Errors
    ///
    /// - [`LoadError::Setting`] if no weight of the model is one that the packer makes parts of, and what
    ///   [`export`](Self::export) says.
    /// - [`LoadError::Packing`] if a weight has another format than the packer says.
    /// - [`LoadError::Write`].
    pub fn export_packed(
        &self,
        dir: impl AsRef<Path>,
        tokenizer: Option<&LlamaTokenizer>,
        packer: &dyn Packer,
    ) -> Result<(), LoadError> {
        self.check_rope()?;
        let layout = self.layout();
        let packed: BTreeMap<String, Packed> = self.packed_weights().into_iter().collect();
        let mut tensors: Vec<(String, Written<'_>)> = Vec::new();
        let mut dense = Vec::new();
        let mut any = false;
        for param in layout.params.iter().filter(|param| !param.is_tied()) {
            let layer = layout.layer_of(param);
            let rows = packed.get(&layer.name);
            let parts = match rows.filter(|_| param.field() == "weight") {
                Some(rows) => packer.write_parts(&layer.name, rows)?,
                None => None,
            };
            if let Some(parts) = parts {
                any = true;
                for (name, part) in parts {
                    tensors.push((format!("{}.{name}", layer.name), Written::Part(part)));
                }
                continue;
            }
            let transposed = layer.kind == LayerKind::Linear && param.field() == "weight";
            if transposed {
                dense.push(layer.name.clone());
            }
            tensors.push((param.name.clone(), Written::of(param, transposed)));
        }
        let Some(quantization) = packer.quantization_config(&dense).filter(|_| any) else {
            return Err(LoadError::Setting {
                setting: "packer",
                found: "one that makes no parts of this model's weights".to_string(),
                expected:
                    "of the format that the weights are packed in; `export` writes them dense"
                        .to_string(),
            });
        };
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(failed(dir))?;
        write_file(&dir.join(WEIGHTS), tensors)?;
        self.write_config(dir, Some(quantization))?;
        match tokenizer {
            Some(tokenizer) => tokenizer.save(dir),
            None => Ok(()),
        }
    }

    fn check_rope(&self) -> Result<(), LoadError> {
        match &self.config().rope.scaling {
            RopeScaling::Factors(factors) => Err(LoadError::Setting {
                setting: "rope scaling",
                found: format!("{} factors of the model's own", factors.len()),
                expected: "one that transformers has: none, linear or Llama 3's".to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn write_config(&self, dir: &Path, quantization: Option<Value>) -> Result<(), LoadError> {
        let tied = self.tied_head.as_ref().and_then(TiedHead::own).is_none();
        let mut json = self.config().to_json(tied && self.lm_head.is_none());
        if let Some(quantization) = quantization {
            json["quantization_config"] = quantization;
        }
        let path = dir.join("config.json");
        let text = serde_json::to_string_pretty(&json).expect("plain data");
        std::fs::write(&path, text).map_err(failed(&path))
    }
}

/// The error about a file that could not be written.
fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> LoadError + use<> {
    let path = path.to_path_buf();
    move |source| LoadError::Write { path, source }
}

//! Writing models as folders that Hugging Face's `transformers` loads.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::FloatDType;
use peft_core::checkpoint::{TensorSource, stage_file};
use peft_core::files::Files;
use peft_core::method::{LayerKind, Layout};
use peft_core::ops::quantized::QuantizedWeight;
use peft_core::quantize::QuantizedModule as _;
use peft_core::quantize::WeightQuantizer;
use peft_core::{PeftModule, TiedHead};
use serde_json::Value;

use crate::{Llama, LlamaTokenizer, LoadError, RopeScaling, checkpoint};

/// Number format of an exported model's dense weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExportDtype {
    /// 32 bits, as weights are in memory: nothing is lost.
    F32,
    /// 16 bits, of which 11 are precision; a value beyond 65,504 is refused.
    F16,
    /// 16 bits, of which 8 are precision.
    BF16,
}

impl ExportDtype {
    /// What `config.json` calls it.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::BF16 => FloatDType::BF16,
        }
    }

    /// That of a model with this `config.json`.
    fn of(config: &Value) -> Self {
        let names = ["dtype", "torch_dtype"].map(|field| config[field].as_str());
        let name = names.into_iter().flatten().next().unwrap_or_default();
        let name = name.strip_prefix("torch.").unwrap_or(name);
        let all = [Self::F16, Self::BF16];
        let found = all.into_iter().find(|dtype| dtype.name() == name);
        found.unwrap_or(Self::F32)
    }
}

/// How a model is written: [`Llama::export_with`].
#[derive(Clone, Copy, Default)]
pub struct ExportConfig<'a> {
    dtype: Option<ExportDtype>,
    quantizer: Option<&'a dyn WeightQuantizer>,
}

impl std::fmt::Debug for ExportConfig<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExportConfig")
            .field("dtype", &self.dtype)
            .field("quantized", &self.quantizer.is_some())
            .finish()
    }
}

impl<'a> ExportConfig<'a> {
    /// Dense weights in the number format of the folder that the model was loaded from.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number format of dense weights. Default: `dtype` or `torch_dtype` of the `config.json` that the
    /// model was loaded with, if that is one of these, and otherwise [`ExportDtype::F32`]. A model that was loaded
    /// from 16 bits and changed in 32, as merging an adapter does, is rounded to 16 bits by default.
    #[must_use]
    pub fn with_dtype(self, dtype: ExportDtype) -> Self {
        Self {
            dtype: Some(dtype),
            ..self
        }
    }

    /// Keeps quantized weights quantized, in the parts that `quantizer` makes of them: [`Llama::export_quantized`].
    #[must_use]
    pub fn with_quantizer(self, quantizer: &'a dyn WeightQuantizer) -> Self {
        Self {
            quantizer: Some(quantizer),
            ..self
        }
    }
}

/// The tensors of a folder, and what its configuration says of quantized ones.
type Tensors<'a> = (Vec<(String, TensorSource<'a>)>, Option<Value>);

impl Llama {
    /// Writes the model as a folder that Hugging Face's `transformers` loads: `model.safetensors` and
    /// `config.json`, and the tokenizer's files where one is given ([`LlamaTokenizer::save`]). Adapters are not in
    /// it: export after [`merge_and_unload`](PeftModule::merge_and_unload) to have them folded in. Quantized weights
    /// are written dense, with the values that they have; [`export_quantized`](Self::export_quantized) keeps them quantized.
    ///
    /// Fields of the `config.json` that the model was loaded with are kept, and its number format:
    /// a model from 16 bits is written in 16 bits, rounded if it was changed since. For another
    /// ([`ExportDtype::F32`] loses nothing) there is [`export_with`](Self::export_with).
    ///
    /// All files change together: after an error, a full disk or a kill the folder holds what it held before, or
    /// all that is new. What an older model in the folder has besides and a reader would take for this one's
    /// (shards with their index; the template of another tokenizer) is deleted then.
    ///
    /// # Errors
    ///
    /// - [`LoadError::Setting`] if the model's rotary embeddings are of a kind that `transformers` lacks: factors
    ///   of a GGUF file that are not those of Llama 3.
    /// - [`LoadError::Packing`] for a value that the number format cannot hold.
    /// - [`LoadError::Write`].
    pub fn export(
        &self,
        dir: impl AsRef<Path>,
        tokenizer: Option<&LlamaTokenizer>,
    ) -> Result<(), LoadError> {
        self.export_with(dir, tokenizer, &ExportConfig::new())
    }

    /// Writes the model as [`export`](Self::export) does, but weights in the quantized form that they have, in the
    /// parts that `quantizer` makes of them, and `quantization_config` in `config.json`: with peft-quantization's
    /// `QuantizationConfig` the 4-bit weights as transformers and bitsandbytes save them. What has no such parts
    /// (tables in 16 bits, Burn's integers) is written dense.
    ///
    /// Adapters are not in it and stay beside it: they belong to these weights.
    ///
    /// # Errors
    ///
    /// - [`LoadError::Setting`] if no weight of the model is one that the quantizer makes parts of, and what
    ///   [`export`](Self::export) says.
    /// - [`LoadError::Packing`] if a weight has another format than the quantizer says.
    /// - [`LoadError::Write`].
    pub fn export_quantized(
        &self,
        dir: impl AsRef<Path>,
        tokenizer: Option<&LlamaTokenizer>,
        quantizer: &dyn WeightQuantizer,
    ) -> Result<(), LoadError> {
        self.export_with(
            dir,
            tokenizer,
            &ExportConfig::new().with_quantizer(quantizer),
        )
    }

    /// [`export`](Self::export) with settings.
    ///
    /// ```no_run
    /// use burn::tensor::Device;
    /// use peft_models::{ExportConfig, ExportDtype, Llama, LlamaTokenizer};
    ///
    /// # fn main() -> Result<(), peft_models::LoadError> {
    /// let model = Llama::load("SmolLM2-135M", &Device::default())?;
    /// let tokenizer = LlamaTokenizer::load("SmolLM2-135M")?;
    /// let config = ExportConfig::new().with_dtype(ExportDtype::BF16);
    /// model.export_with("mine", Some(&tokenizer), &config)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`export`](Self::export) and [`export_quantized`](Self::export_quantized).
    pub fn export_with(
        &self,
        dir: impl AsRef<Path>,
        tokenizer: Option<&LlamaTokenizer>,
        config: &ExportConfig<'_>,
    ) -> Result<(), LoadError> {
        self.check_rope()?;
        let dtype = config.dtype.unwrap_or(ExportDtype::of(&self.source));
        let layout = self.layout();
        let (tensors, quantization) = self.tensors(&layout, dtype.dtype(), config.quantizer)?;
        let dir = dir.as_ref();
        let mut files = Files::new(dir).map_err(checkpoint::written)?;
        stage_file(&mut files, checkpoint::SINGLE, tensors).map_err(checkpoint::written)?;
        if let Some(tokenizer) = tokenizer {
            tokenizer.stage(&mut files)?;
        }
        let tied = self.tied_head.as_ref().and_then(TiedHead::own).is_none();
        let tied = tied && self.lm_head.is_none();
        let mut json = self.config().to_json(&self.source, tied, dtype.name());
        if let Some(quantization) = quantization {
            json["quantization_config"] = quantization;
        }
        if let Some(ends) = tokenizer.and_then(LlamaTokenizer::new_ends) {
            json["eos_token_id"] = ends;
        }
        let text = serde_json::to_string_pretty(&json).expect("plain data");
        files
            .stage(checkpoint::CONFIG, |file| file.write_all(text.as_bytes()))
            .map_err(checkpoint::written)?;
        files.commit().map_err(checkpoint::written)?;
        remove_shards(dir)?;
        match tokenizer {
            Some(tokenizer) => tokenizer.remove_leftovers(dir),
            None => Ok(()),
        }
    }

    fn tensors<'a>(
        &self,
        layout: &'a Layout,
        dtype: FloatDType,
        quantizer: Option<&dyn WeightQuantizer>,
    ) -> Result<Tensors<'a>, LoadError> {
        let quantized: BTreeMap<String, QuantizedWeight> =
            self.quantized_weights().into_iter().collect();
        let mut tensors = Vec::new();
        let mut dense = Vec::new();
        let mut any = false;
        for param in layout.params.iter().filter(|param| !param.is_tied()) {
            let layer = layout.layer_of(param);
            let rows = quantized.get(&layer.name);
            let parts = match (rows.filter(|_| param.field() == "weight"), quantizer) {
                (Some(rows), Some(quantizer)) => quantizer.write_parts(&layer.name, rows)?,
                _ => None,
            };
            if let Some(parts) = parts {
                any = true;
                for (name, part) in parts {
                    tensors.push((format!("{}.{name}", layer.name), TensorSource::Part(part)));
                }
                continue;
            }
            let transposed = layer.kind == LayerKind::Linear && param.field() == "weight";
            if transposed {
                dense.push(layer.name.clone());
            }
            let tensor = TensorSource::of(param, transposed).cast(dtype);
            tensors.push((param.name.clone(), tensor));
        }
        let Some(quantizer) = quantizer else {
            return Ok((tensors, None));
        };
        let quantization = quantizer.quantization_config(&dense).filter(|_| any);
        if quantization.is_none() {
            return Err(LoadError::Setting {
                setting: "quantizer",
                found: "one that makes no parts of this model's weights".to_string(),
                expected:
                    "of the format that the weights are quantized in; `export` writes them dense"
                        .to_string(),
            });
        }
        Ok((tensors, quantization))
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
}

/// Deletes the shards of a model that was in the folder, and then their index: some readers prefer it to the one
/// file.
fn remove_shards(dir: &Path) -> Result<(), LoadError> {
    let index = dir.join(checkpoint::INDEX);
    if !index.exists() {
        return Ok(());
    }
    // A damaged index names no shards.
    let shards = checkpoint::shard_files(dir, &index).unwrap_or_default();
    for shard in shards {
        let name = shard.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("model-") && name.ends_with(".safetensors") {
            checkpoint::remove(&shard)?;
        }
    }
    checkpoint::remove(&index)
}

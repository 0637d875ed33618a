//! Loading published weights, and writing them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use peft_core::KeyMapping;
use peft_core::quantize::WeightQuantizer;
use serde_json::{Value, json};

use super::{Llama, LlamaConfig, RENAMES};
use crate::LoadError;
use crate::checkpoint::{self, Checkpoint, Source, fill, wanted};
use crate::gguf::{self, Gguf, gguf_file};

/// Loads a [`Llama`], with settings: [`Llama::load`] is the short form.
///
/// ```no_run
/// # use burn::tensor::Device;
/// # use peft_models::LlamaLoader;
/// # fn main() -> Result<(), peft_models::LoadError> {
/// let device = Device::default();
/// let llama = LlamaLoader::new("SmolLM2-135M-Instruct").load(&device)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct LlamaLoader<'a> {
    path: &'a Path,
    quantizer: Option<&'a dyn WeightQuantizer>,
}

impl std::fmt::Debug for LlamaLoader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlamaLoader")
            .field("path", &self.path)
            .field("quantized", &self.quantizer.is_some())
            .finish()
    }
}

impl<'a> LlamaLoader<'a> {
    /// Of a folder in Hugging Face's layout, a GGUF file, or a folder with one GGUF file and no `config.json`.
    pub fn new<P: AsRef<Path> + ?Sized>(path: &'a P) -> Self {
        Self {
            path: path.as_ref(),
            quantizer: None,
        }
    }

    /// Stores weights as `quantizer` says, while they are read: no weight is there dense but the one being
    /// quantized.
    ///
    /// Of a folder that transformers saved in bitsandbytes' 4 bits, which cannot be loaded otherwise, the quantizer
    /// reads these (`QuantizationConfig::load(folder)` of peft-quantization): they stay as they are in the file.
    #[must_use]
    pub fn with_quantizer(self, quantizer: &'a dyn WeightQuantizer) -> Self {
        Self {
            quantizer: Some(quantizer),
            ..self
        }
    }

    /// Reads the model.
    ///
    /// # Errors
    ///
    /// As [`Llama::load`].
    pub fn load(&self, device: &Device) -> Result<Llama, LoadError> {
        let model = match gguf_file(self.path)? {
            Some(file) => self.load_gguf(&file, device),
            None => self.load_folder(device),
        }?;
        // What the largest tensor needed on its way.
        peft_core::ops::give_back_freed_memory();
        Ok(model)
    }

    fn load_folder(&self, device: &Device) -> Result<Llama, LoadError> {
        let (config, json) = LlamaConfig::of_folder(self.path)?;
        let mut checkpoint = Checkpoint::open(self.path, canonical)?;
        let model = config.build(device);
        let names = KeyMapping::new(RENAMES);
        let tied = config.tie_word_embeddings;
        checkpoint.check(&wanted(&model, &names), |name| {
            name.ends_with("rotary_emb.inv_freq") || tied && name == "lm_head.weight"
        })?;
        let model = fill(model, &names, &mut checkpoint, &canonical, self.quantizer)?;
        Ok(Llama {
            source: Arc::new(json),
            ..model
        })
    }

    fn load_gguf(&self, file: &Path, device: &Device) -> Result<Llama, LoadError> {
        let gguf = Gguf::open(file)?;
        let json = gguf::config_json(&gguf)?;
        let config = LlamaConfig::from_json(&json, gguf.path())?;
        let mut source = GgufSource::new(&gguf, &config);
        let model = config.build(device);
        let names = KeyMapping::new(RENAMES);
        source.check(&wanted(&model, &names))?;
        let model = fill(model, &names, &mut source, &str::to_string, self.quantizer)?;
        // The rest is known of the configuration.
        let source = match &json["pad_token_id"] {
            Value::Null => Value::Null,
            id => json!({ "pad_token_id": id }),
        };
        Ok(Llama {
            source: Arc::new(source),
            ..model
        })
    }
}

/// Names of whole models; checkpoints of the decoder alone lack the prefix.
fn canonical(name: &str) -> String {
    if name.starts_with("model.") || name.starts_with("lm_head.") {
        name.to_string()
    } else {
        format!("model.{name}")
    }
}

/// A GGUF file under upstream's names and in upstream's order of rows.
struct GgufSource<'a> {
    gguf: &'a Gguf,
    /// llama.cpp's names, by upstream's.
    names: BTreeMap<String, String>,
    unknown: Vec<String>,
    /// Heads of queries, and of keys, whose rows llama.cpp has in another order.
    heads: Option<[usize; 2]>,
}

impl<'a> GgufSource<'a> {
    fn new(gguf: &'a Gguf, config: &LlamaConfig) -> Self {
        let mut names = BTreeMap::new();
        let mut unknown = Vec::new();
        for name in gguf.names() {
            match gguf::hugging_face_name(name) {
                Some(upstream) => {
                    names.insert(upstream, name.to_string());
                }
                None if gguf::harmless(name) => {}
                None => unknown.push(name.to_string()),
            }
        }
        let heads = [config.num_attention_heads, config.num_key_value_heads];
        Self {
            gguf,
            names,
            unknown,
            heads: (config.model_type != "qwen2").then_some(heads),
        }
    }

    /// That there is exactly what the model needs.
    fn check(&self, wanted: &[(String, Vec<usize>)]) -> Result<(), LoadError> {
        let path = self.gguf.path().to_path_buf();
        let missing: Vec<&str> = wanted
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !self.names.contains_key(*name))
            .collect();
        if !missing.is_empty() {
            let (count, names) = (missing.len(), checkpoint::listed(&missing));
            return Err(LoadError::Missing { path, count, names });
        }
        let known: BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
        let extra = self
            .names
            .keys()
            .filter(|name| !known.contains(name.as_str()));
        let unexpected: Vec<&str> = extra.chain(&self.unknown).map(String::as_str).collect();
        if !unexpected.is_empty() {
            let (count, names) = (unexpected.len(), checkpoint::listed(&unexpected));
            return Err(LoadError::Unexpected { path, count, names });
        }
        for (name, expected) in wanted {
            let stored = &self.names[name];
            let found = self.gguf.shape(stored).unwrap_or_default();
            if found != expected {
                return Err(LoadError::Shape {
                    path,
                    tensor: stored.clone(),
                    expected: expected.clone(),
                    found: found.to_vec(),
                });
            }
        }
        Ok(())
    }
}

impl Source for GgufSource<'_> {
    fn read(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        let stored = &self.names[name];
        let values = self.gguf.read(stored)?;
        let heads = match &self.heads {
            Some([heads, _]) if name.contains(".q_proj.") => *heads,
            Some([_, heads]) if name.contains(".k_proj.") => *heads,
            _ => return Ok(values),
        };
        let rows = self.gguf.shape(stored).and_then(<[usize]>::first);
        let rows = rows.copied().unwrap_or(1).max(1);
        Ok(gguf::unpermute(&values, heads, [rows, values.len() / rows]))
    }
}

impl Llama {
    /// Loads a model from a folder in Hugging Face's layout (`config.json` and `model.safetensors`, or shards
    /// and their `model.safetensors.index.json`), or from a GGUF file.
    ///
    /// Read are f32, f16 and bf16 tensors, and GGUF's common types
    /// ([`Gguf`](crate::gguf::Gguf)); all become f32. Weights in bitsandbytes' 4 bits need a quantizer
    /// ([`LlamaLoader::with_quantizer`]). One tensor at a time is read, so memory holds the model
    /// once. Parameters are trainable, as Burn's fresh ones are; attaching an adapter freezes them.
    ///
    /// # Errors
    ///
    /// [`LoadError`], naming the file, field or tensor: another architecture, an unsupported setting, weights in
    /// another form (`pytorch_model.bin`), a damaged file, tensors that are missing, left over, of another shape or number format, or not finite.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self, LoadError> {
        LlamaLoader::new(path.as_ref()).load(device)
    }
}

//! The configuration of a Llama-like model, as `config.json` has it.

use std::path::Path;
use std::sync::Arc;

use burn::module::Initializer;
use burn::nn::{Embedding, Linear, RmsNorm, RmsNormConfig};
use burn::tensor::Device;
use peft_core::DecoderSettings;
use serde_json::{Value, json};

use super::rope::Rope;
use crate::gguf::{self, Gguf, gguf_file};
use crate::{LoadError, checkpoint};

/// More layers than any model of the family has; a configuration beyond is damaged or hostile.
const MAX_LAYERS: usize = 1024;

/// The product of two sizes is one, too.
const MAX_SIZE: u64 = 1 << 31;

/// Sizes and settings of a Llama-like model: Llama 2 and 3, Mistral, SmolLM2, Qwen2.
///
/// Fields are those of Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools)] // Upstream's.
pub struct LlamaConfig {
    /// Number of token embeddings.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Number of layers, 1 to 1024.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; they divide those of queries. Default: as many.
    pub num_key_value_heads: usize,
    /// Features of a head, an even number; default `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// The most positions of a text, virtual tokens included; default 2048.
    pub max_position_embeddings: usize,
    /// Added to the mean square of a normalisation; default 1e-6.
    pub rms_norm_eps: f64,
    /// How positions turn queries and keys.
    pub rope: Rope,
    /// Whether the projections of queries, keys and values have biases: Qwen2's do.
    pub qkv_bias: bool,
    /// Whether attention's output projection has a bias.
    pub o_bias: bool,
    /// Whether the feed-forward part's projections have biases.
    pub mlp_bias: bool,
    /// Whether the output head is the embedding table; default false.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh matrices; default 0.02.
    pub initializer_range: f64,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end one.
    pub eos_token_ids: Vec<u32>,
    /// `llama`, `mistral` or `qwen2`.
    pub model_type: String,
}

/// A field of a JSON object, and what is to be said of it.
struct Fields<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Fields<'_> {
    fn refuse(&self, field: &'static str, expected: &str) -> LoadError {
        let found = match &self.json[field] {
            Value::Null => "missing".to_string(),
            value => value.to_string(),
        };
        LoadError::Config {
            path: self.path.to_path_buf(),
            field,
            found,
            expected: expected.to_string(),
        }
    }

    fn size(&self, field: &'static str, default: Option<usize>) -> Result<usize, LoadError> {
        match (&self.json[field], default) {
            (Value::Null, Some(default)) => Ok(default),
            (value, _) => value
                .as_u64()
                .filter(|size| (1..=MAX_SIZE).contains(size))
                .map(|size| size as usize)
                .ok_or_else(|| self.refuse(field, "a whole number from 1 to 2^31")),
        }
    }

    fn number(&self, field: &'static str, default: f64) -> Result<f64, LoadError> {
        match &self.json[field] {
            Value::Null => Ok(default),
            value => value
                .as_f64()
                .filter(|value| value.is_finite() && *value >= 0.0)
                .ok_or_else(|| self.refuse(field, "finite and not negative")),
        }
    }

    fn flag(&self, field: &'static str) -> Result<bool, LoadError> {
        match &self.json[field] {
            Value::Null => Ok(false),
            value => value
                .as_bool()
                .ok_or_else(|| self.refuse(field, "true or false")),
        }
    }

    /// Ids of tokens: one, or a list.
    fn tokens(&self, field: &'static str, vocab: usize) -> Result<Vec<u32>, LoadError> {
        let values = match &self.json[field] {
            Value::Null => return Ok(Vec::new()),
            Value::Array(values) => values.clone(),
            value => vec![value.clone()],
        };
        values
            .iter()
            .map(|value| {
                value
                    .as_u64()
                    .filter(|id| (*id as usize) < vocab)
                    .map(|id| id as u32)
                    .ok_or_else(|| self.refuse(field, &format!("tokens below {vocab}")))
            })
            .collect()
    }
}

impl LlamaConfig {
    /// Reads the configuration of what [`Llama::load`](crate::Llama::load) loads, and no weights: `config.json`
    /// in a folder, or the header of a GGUF file, or of the one such file in a folder without a `config.json`.
    /// Fields that are not known are ignored.
    ///
    /// # Errors
    ///
    /// [`LoadError::Io`] and [`LoadError::Json`] where there is no such file, [`LoadError::Gguf`];
    /// [`LoadError::Config`] for another architecture and where a field is missing or not supported.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref();
        if let Some(file) = gguf_file(path)? {
            return Self::of_gguf(&Gguf::open(file)?);
        }
        Ok(Self::of_folder(path)?.0)
    }

    /// The configuration of a folder, and the whole content of its `config.json`.
    pub(super) fn of_folder(dir: &Path) -> Result<(Self, Value), LoadError> {
        let path = checkpoint::place(dir, checkpoint::CONFIG);
        let json = checkpoint::read_json(&path)?;
        Ok((Self::from_json(&json, &path)?, json))
    }

    /// The configuration in the header of a GGUF file.
    pub(super) fn of_gguf(gguf: &Gguf) -> Result<Self, LoadError> {
        Self::from_json(&gguf::config_json(gguf)?, gguf.path())
    }

    /// The configuration in the content of a `config.json`; `path` is what errors call it.
    ///
    /// # Errors
    ///
    /// [`LoadError::Config`].
    pub fn from_json(json: &Value, path: &Path) -> Result<Self, LoadError> {
        let fields = Fields { path, json };
        let model_type = json["model_type"].as_str().unwrap_or_default().to_string();
        let qwen = match model_type.as_str() {
            "llama" | "mistral" => false,
            "qwen2" => true,
            _ => return Err(fields.refuse("model_type", "`llama`, `mistral` or `qwen2`")),
        };
        match &json["hidden_act"] {
            Value::Null => {}
            value if value == "silu" => {}
            _ => return Err(fields.refuse("hidden_act", "`silu`")),
        }
        let vocab_size = fields.size("vocab_size", None)?;
        let hidden_size = fields.size("hidden_size", None)?;
        let num_attention_heads = fields.size("num_attention_heads", None)?;
        let max_position_embeddings = fields.size("max_position_embeddings", Some(2048))?;
        let head_dim = fields.size("head_dim", Some((hidden_size / num_attention_heads).max(1)))?;
        if !head_dim.is_multiple_of(2) {
            return Err(fields.refuse("head_dim", &format!("even, and {head_dim} is not")));
        }
        let num_key_value_heads = fields.size("num_key_value_heads", Some(num_attention_heads))?;
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of the {num_attention_heads} heads");
            return Err(fields.refuse("num_key_value_heads", &expected));
        }
        let num_hidden_layers = fields.size("num_hidden_layers", None)?;
        if num_hidden_layers > MAX_LAYERS {
            return Err(fields.refuse("num_hidden_layers", &format!("at most {MAX_LAYERS}")));
        }
        let window = &json["sliding_window"];
        let windowed = json["use_sliding_window"].as_bool().unwrap_or(true);
        if windowed
            && window
                .as_u64()
                .is_some_and(|window| (window as usize) < max_position_embeddings)
        {
            let expected =
                "null or at least max_position_embeddings: attention over a window is not built";
            return Err(fields.refuse("sliding_window", expected));
        }
        let attention_bias = fields.flag("attention_bias")?;
        Ok(Self {
            vocab_size,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", None)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
            rope: Rope::from_json(json, path, head_dim)?,
            qkv_bias: qwen || attention_bias,
            o_bias: attention_bias && !qwen,
            mlp_bias: fields.flag("mlp_bias")?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            initializer_range: fields.number("initializer_range", 0.02)?,
            bos_token_id: fields.tokens("bos_token_id", vocab_size)?.first().copied(),
            eos_token_ids: fields.tokens("eos_token_id", vocab_size)?,
            model_type,
        })
    }

    /// The content of `config.json`, as upstream reads it. Fields of `source`, the one that was read, stay: those
    /// that are not known here as they are, and the others too where they still say the same.
    pub(crate) fn to_json(&self, source: &Value, tied: bool, dtype: &str) -> Value {
        let read = Self::from_json(source, Path::new(checkpoint::CONFIG));
        let said = read.is_ok_and(|read| read == *self);
        let mut json = match source {
            Value::Object(_) => source.clone(),
            _ => json!({}),
        };
        if let Value::Object(own) = self.own_json()
            && !said
        {
            let fields = json.as_object_mut().expect("an object");
            fields.remove("rope_parameters");
            fields.extend(own);
        }
        json["architectures"] = json!([self.architecture()]);
        json["tie_word_embeddings"] = tied.into();
        let fields = json.as_object_mut().expect("an object");
        // Versions before 5 of transformers call it `torch_dtype`.
        let names = ["dtype", "torch_dtype"];
        let there = |name: &&str| fields.get(*name).is_some_and(|value| !value.is_null());
        let mut there: Vec<&str> = names.into_iter().filter(there).collect();
        if there.is_empty() {
            there.extend(names);
        }
        for name in there {
            fields.insert(name.to_string(), dtype.into());
        }
        // Said by those that write such weights.
        fields.remove("quantization_config");
        json
    }

    fn architecture(&self) -> &'static str {
        match self.model_type.as_str() {
            "mistral" => "MistralForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            _ => "LlamaForCausalLM",
        }
    }

    /// All fields that are known here.
    fn own_json(&self) -> Value {
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        let mut json = json!({
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": self.rope.scaling_json(),
            "rope_theta": self.rope.theta,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        match self.model_type.as_str() {
            "qwen2" => json["use_sliding_window"] = false.into(),
            "mistral" => json["sliding_window"] = Value::Null,
            _ => {
                json["attention_bias"] = self.o_bias.into();
                json["mlp_bias"] = self.mlp_bias.into();
            }
        }
        json
    }

    /// What the model's weights do not say.
    pub(super) fn decoder_settings(&self) -> DecoderSettings {
        let rope = self.rope.clone();
        DecoderSettings {
            norm_epsilon: self.rms_norm_eps,
            frequencies: Arc::new(move |head_dim| rope.frequencies(head_dim)),
        }
    }

    pub(super) fn initializer(&self) -> Initializer {
        Initializer::Normal {
            mean: 0.0,
            std: self.initializer_range,
        }
    }

    pub(super) fn linear(&self, d_in: usize, d_out: usize, bias: bool, device: &Device) -> Linear {
        Linear {
            weight: self.initializer().init([d_in, d_out], device),
            bias: bias.then(|| Initializer::Zeros.init([d_out], device)),
        }
    }

    pub(super) fn norm(&self, device: &Device) -> RmsNorm {
        RmsNormConfig::new(self.hidden_size)
            // Burn wants it positive, and adds it as upstream does.
            .with_epsilon(self.rms_norm_eps.max(f64::MIN_POSITIVE))
            .init(device)
    }

    pub(super) fn embedding(&self, device: &Device) -> Embedding {
        Embedding {
            weight: self
                .initializer()
                .init([self.vocab_size, self.hidden_size], device),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn golden(name: &str) -> PathBuf {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        dir.join(name)
    }

    #[test]
    fn a_gguf_file_is_configured_by_its_header() {
        let file = golden("gguf/types.gguf");
        let config = LlamaConfig::load(&file).unwrap();
        let sizes = [
            config.hidden_size,
            config.intermediate_size,
            config.head_dim,
        ];
        assert_eq!((config.model_type.as_str(), sizes), ("llama", [8, 32, 4]));
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(&file, dir.path().join("model.gguf")).unwrap();
        assert_eq!(LlamaConfig::load(dir.path()).unwrap(), config);
        // A `config.json` comes first.
        let json = golden("llama/base/config.json");
        std::fs::copy(json, dir.path().join("config.json")).unwrap();
        let other = LlamaConfig::load(golden("llama/base")).unwrap();
        assert_eq!(LlamaConfig::load(dir.path()).unwrap(), other);
        assert!(matches!(
            LlamaConfig::load(golden("llama")).unwrap_err(),
            LoadError::Io { .. }
        ));
    }

    #[test]
    fn sizes_are_bounded() {
        let path = golden("llama/base/config.json");
        let json: Value = checkpoint::read_json(&path).unwrap();
        for (field, size, fine) in [
            ("vocab_size", 1_u64 << 31, true),
            ("vocab_size", (1 << 31) + 1, false),
            ("hidden_size", 0, false),
            ("intermediate_size", u64::MAX, false),
        ] {
            let mut json = json.clone();
            json[field] = size.into();
            match LlamaConfig::from_json(&json, &path) {
                Ok(_) => assert!(fine, "{field}: {size}"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(!fine && error.contains("from 1 to 2^31"), "{error}");
                }
            }
        }
    }
}

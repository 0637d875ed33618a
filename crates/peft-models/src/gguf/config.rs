//! A model's configuration from the header of a GGUF file.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Gguf;
use crate::LoadError;

/// Architectures that are read. Mistral's models call themselves `llama`.
const ARCHITECTURES: [&str; 2] = ["llama", "qwen2"];

/// The tensor of the factors that rotary frequencies are divided by.
const FACTORS: &str = "rope_freqs.weight";

/// Names of tokens that end a turn or a text, of the families that llama.cpp knows (`llama-vocab.cpp`).
const END_TOKENS: [&str; 8] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
];

/// The configuration with the fields of Hugging Face's `config.json`.
///
/// `rope_scaling` is absent, of `rope_type` `linear` with a `factor`, or of `rope_type` `factors`:
/// llama.cpp stores what Llama 3's scaling comes to, the `factors` (half of `head_dim`) that the
/// inverse frequencies are divided by.
///
/// # Errors
///
/// [`LoadError::Gguf`] for an architecture or a setting that is not supported, a missing or
/// impossible value; what [`Gguf::read`] reports.
pub(crate) fn config_json(gguf: &Gguf) -> Result<Value, LoadError> {
    let architecture = gguf.need("general.architecture", Gguf::str)?;
    if !ARCHITECTURES.contains(&architecture) {
        return Err(gguf.bad(format!(
            "`general.architecture` is `{architecture}`; `llama` and `qwen2` are read"
        )));
    }
    let header = Header { gguf, architecture };
    let experts = gguf.u32(&header.key("expert_count"))?.unwrap_or(0);
    if experts > 0 {
        return Err(gguf.bad(format!(
            "it is a mixture of {experts} experts, which is not supported"
        )));
    }
    let hidden = header.positive("embedding_length")?;
    let heads = header.positive("attention.head_count")?;
    let kv_heads = header.positive_or("attention.head_count_kv", heads)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(gguf.bad(format!(
            "its {heads} attention heads are no multiple of its {kv_heads} key-value heads"
        )));
    }
    let head_dim = header.head_dim(hidden, heads)?;
    let rope_theta = header.positive_f32("rope.freq_base", Some(10_000.0))?;
    let mut config = json!({
        "model_type": architecture,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": header.positive("feed_forward_length")?,
        "num_hidden_layers": header.positive("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": header.positive_f32("attention.layer_norm_rms_epsilon", None)?,
        "rope_theta": rope_theta,
        "max_position_embeddings": header.positive("context_length")?,
        "vocab_size": header.vocab_size()?,
        "tie_word_embeddings": gguf.shape("output.weight").is_none(),
        "attention_bias": gguf.shape("blk.0.attn_q.bias").is_some(),
    });
    if let Some(scaling) = header.rope_scaling(head_dim)? {
        config["rope_scaling"] = scaling;
    }
    for (key, field) in [
        ("tokenizer.ggml.bos_token_id", "bos_token_id"),
        ("tokenizer.ggml.padding_token_id", "pad_token_id"),
    ] {
        if let Some(id) = gguf.u32(key)? {
            config[field] = json!(id);
        }
    }
    match end_tokens(gguf)?.as_slice() {
        [] => {}
        [one] => config["eos_token_id"] = json!(one),
        several => config["eos_token_id"] = json!(several),
    }
    Ok(config)
}

/// Tokens that end a text or a turn: those that the header names, and those that are called so. Older files of
/// chat models do not name the token that ends a turn.
fn end_tokens(gguf: &Gguf) -> Result<Vec<u32>, LoadError> {
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(gguf.u32(&format!("tokenizer.ggml.{name}_token_id"))?);
    }
    let tokens = gguf.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
    let called = tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| END_TOKENS.contains(&token.as_str()))
        .filter_map(|(id, _)| u32::try_from(id).ok());
    ends.extend(called);
    let mut seen = BTreeSet::new();
    ends.retain(|id| seen.insert(*id));
    Ok(ends)
}

/// Values of the architecture.
struct Header<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Header<'_> {
    fn key(&self, field: &str) -> String {
        format!("{}.{field}", self.architecture)
    }

    fn positive(&self, field: &str) -> Result<u32, LoadError> {
        let key = self.key(field);
        let value = self.gguf.need(&key, Gguf::u32)?;
        self.above_zero(&key, value)
    }

    fn positive_or(&self, field: &str, default: u32) -> Result<u32, LoadError> {
        let key = self.key(field);
        let value = self.gguf.u32(&key)?.unwrap_or(default);
        self.above_zero(&key, value)
    }

    fn above_zero(&self, key: &str, value: u32) -> Result<u32, LoadError> {
        if value == 0 {
            return Err(self
                .gguf
                .bad(format!("`{key}` is 0, but must be at least 1")));
        }
        Ok(value)
    }

    fn positive_f32(&self, field: &str, default: Option<f32>) -> Result<f64, LoadError> {
        let key = self.key(field);
        let value = match (self.gguf.f32(&key)?, default) {
            (Some(value), _) | (None, Some(value)) => value,
            (None, None) => self.gguf.need(&key, Gguf::f32)?,
        };
        if !(value.is_finite() && value > 0.0) {
            return Err(self.gguf.bad(format!(
                "`{key}` is {value}, but must be finite and above 0"
            )));
        }
        Ok(decimal(value))
    }

    /// Width of a head, all of which must be rotated.
    fn head_dim(&self, hidden: u32, heads: u32) -> Result<u32, LoadError> {
        let size = match self.gguf.u32(&self.key("attention.key_length"))? {
            Some(size) => size,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(self.gguf.bad(format!(
                    "its width, {hidden}, is no multiple of its {heads} attention heads"
                )));
            }
        };
        if size == 0 || !size.is_multiple_of(2) {
            return Err(self.gguf.bad(format!(
                "its heads have the width {size}, but must have an even one"
            )));
        }
        for field in ["attention.value_length", "rope.dimension_count"] {
            let key = self.key(field);
            let found = self.gguf.u32(&key)?.unwrap_or(size);
            if found != size {
                return Err(self.gguf.bad(format!(
                    "`{key}` is {found}, but must be the width of a head, {size}"
                )));
            }
        }
        Ok(size)
    }

    /// Number of embeddings, padding included.
    fn vocab_size(&self) -> Result<usize, LoadError> {
        match self.gguf.shape("token_embd.weight") {
            Some([rows, _]) => Ok(*rows),
            Some(shape) => Err(self.gguf.bad(format!(
                "tensor `token_embd.weight` has the shape {shape:?}, but must be a matrix"
            ))),
            None => Err(self.gguf.bad("it has no tensor `token_embd.weight`")),
        }
    }

    fn rope_scaling(&self, head_dim: u32) -> Result<Option<Value>, LoadError> {
        let key = self.key("rope.scaling.type");
        let linear = match self.gguf.str(&key)? {
            // Files from before there was a type: only linear scaling existed.
            None => self.gguf.f32(&self.key("rope.scale_linear"))?.is_some(),
            Some("none") => false,
            Some("linear") => true,
            Some(other) => {
                return Err(self.gguf.bad(format!(
                    "`{key}` is `{other}`; `none` and `linear` are read"
                )));
            }
        };
        let linear = if linear {
            let old = self.gguf.f32(&self.key("rope.scale_linear"))?;
            Some(self.positive_f32("rope.scaling.factor", old)?)
        } else {
            None
        };
        match (linear, self.factors(head_dim)?) {
            (None, None) => Ok(None),
            (Some(factor), None) => Ok(Some(scaling("linear", "factor", json!(factor)))),
            (None, Some(factors)) => Ok(Some(scaling("factors", "factors", json!(factors)))),
            (Some(_), Some(_)) => Err(self.gguf.bad(format!(
                "it has both linear scaling and `{FACTORS}` for its rotary embeddings"
            ))),
        }
    }

    /// What inverse frequencies are divided by, unless that is 1 throughout.
    fn factors(&self, head_dim: u32) -> Result<Option<Vec<f64>>, LoadError> {
        let Some(shape) = self.gguf.shape(FACTORS) else {
            return Ok(None);
        };
        let expected = [head_dim as usize / 2];
        if shape != expected {
            return Err(self.gguf.bad(format!(
                "tensor `{FACTORS}` has the shape {shape:?}, but must have {expected:?}"
            )));
        }
        let factors: Vec<f64> = self.gguf.read(FACTORS)?.into_iter().map(decimal).collect();
        if let Some(factor) = factors.iter().find(|factor| **factor <= 0.0) {
            return Err(self.gguf.bad(format!(
                "tensor `{FACTORS}` holds {factor}, but all must be above 0"
            )));
        }
        let scaled = factors.iter().any(|factor| factor.total_cmp(&1.0).is_ne());
        Ok(scaled.then_some(factors))
    }
}

fn scaling(rope_type: &str, field: &str, value: Value) -> Value {
    let mut map = Map::new();
    map.insert("rope_type".to_string(), json!(rope_type));
    map.insert(field.to_string(), value);
    Value::Object(map)
}

/// The shortest decimal that rounds to `value`: what `config.json` says, rather than its `f32`.
fn decimal(value: f32) -> f64 {
    value
        .to_string()
        .parse()
        .unwrap_or_else(|_| f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::super::metadata::{Number, Value as Found};
    use super::super::tests::{golden, smollm2};
    use super::*;

    fn refusal(key: &str, value: Found) -> String {
        let mut gguf = Gguf::open(golden("types.gguf")).unwrap();
        gguf.metadata.insert(key.to_string(), value);
        config_json(&gguf).unwrap_err().to_string()
    }

    fn int(value: i128) -> Found {
        Found::Number(Number::Int(value))
    }

    fn text(value: &str) -> Found {
        Found::Text(value.to_string())
    }

    #[test]
    fn the_configuration_is_that_of_hugging_face() {
        let mut gguf = Gguf::open(golden("types.gguf")).unwrap();
        let rows = gguf
            .strings("tokenizer.ggml.tokens")
            .unwrap()
            .unwrap()
            .len();
        let expected = json!({
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": 8,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000.0,
            "max_position_embeddings": 64,
            "vocab_size": rows,
            "tie_word_embeddings": true,
            "attention_bias": false,
            "rope_scaling": { "rope_type": "factors", "factors": [1.0, 8.1] },
            "bos_token_id": 1,
            // <|im_end|>, and <|endoftext|> by its name.
            "eos_token_id": [2, 0],
        });
        assert_eq!(config_json(&gguf).unwrap(), expected);

        gguf.tensors.remove(FACTORS);
        assert_eq!(config_json(&gguf).unwrap().get("rope_scaling"), None);
        let scale = Found::Number(Number::Float(4.0));
        gguf.metadata
            .insert("llama.rope.scaling.type".to_string(), text("linear"));
        gguf.metadata
            .insert("llama.rope.scaling.factor".to_string(), scale);
        assert_eq!(
            config_json(&gguf).unwrap()["rope_scaling"],
            json!({ "rope_type": "linear", "factor": 4.0 })
        );
    }

    #[test]
    fn tokens_that_end_turns_are_ends_too() {
        let mut gguf = Gguf::open(golden("types.gguf")).unwrap();
        let ends = |gguf: &Gguf| config_json(gguf).unwrap()["eos_token_id"].clone();
        let key = |name: &str| format!("tokenizer.ggml.{name}_token_id");
        gguf.metadata.insert(key("eot"), int(5));
        gguf.metadata.insert(key("eom"), int(2));
        assert_eq!(ends(&gguf), json!([2, 5, 0]));
        // By their names, as in files that do not say it.
        for name in ["eos", "eot", "eom"] {
            gguf.metadata.remove(&key(name));
        }
        let mut tokens = gguf
            .strings("tokenizer.ggml.tokens")
            .unwrap()
            .unwrap()
            .to_vec();
        tokens[7] = "<|eot_id|>".to_string();
        let set = |gguf: &mut Gguf, tokens: &[String]| {
            let key = "tokenizer.ggml.tokens".to_string();
            gguf.metadata.insert(key, Found::Texts(tokens.to_vec()));
        };
        set(&mut gguf, &tokens);
        assert_eq!(ends(&gguf), json!([0, 2, 7]));
        let config = crate::LlamaConfig::from_json(&config_json(&gguf).unwrap(), gguf.path());
        assert_eq!(config.unwrap().eos_token_ids, [0, 2, 7]);
        tokens[0] = "a".to_string();
        tokens[2] = "b".to_string();
        set(&mut gguf, &tokens);
        assert_eq!(ends(&gguf), 7);
    }

    #[test]
    fn the_published_model_is_configured_as_published() {
        let Some(gguf) = smollm2() else { return };
        let expected = json!({
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000.0,
            "max_position_embeddings": 8192,
            "vocab_size": 49152,
            "tie_word_embeddings": true,
            "attention_bias": false,
            "bos_token_id": 1,
            // <|im_end|>, and <|endoftext|> by its name.
            "eos_token_id": [2, 0],
            "pad_token_id": 2,
        });
        assert_eq!(config_json(&gguf).unwrap(), expected);
        for name in gguf.names() {
            assert!(super::super::hugging_face_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn configurations_that_are_not_supported() {
        for (key, value, parts) in [
            ("general.architecture", text("gemma"), ["`gemma`", "qwen2"]),
            ("llama.expert_count", int(8), ["8 experts", "mixture"]),
            ("llama.block_count", int(0), ["block_count", "at least 1"]),
            ("llama.block_count", int(1 << 32), ["block_count", "2^32"]),
            ("llama.block_count", text("1"), ["\"1\"", "whole number"]),
            ("llama.attention.head_count", int(3), ["8", "multiple"]),
            ("llama.attention.head_count_kv", int(3), ["3", "multiple"]),
            ("llama.attention.key_length", int(3), ["3", "even"]),
            ("llama.rope.dimension_count", int(2), ["is 2", "a head, 4"]),
            (
                "llama.rope.scaling.type",
                text("yarn"),
                ["`yarn`", "linear"],
            ),
            (
                "llama.rope.scaling.type",
                text("linear"),
                ["lacks", "factor"],
            ),
            (
                "llama.rope.freq_base",
                Found::Number(Number::Float(f64::NAN)),
                ["NaN", "above 0"],
            ),
        ] {
            let refusal = refusal(key, value);
            for part in parts {
                assert!(refusal.contains(part), "`{part}` is not in: {refusal}");
            }
        }
    }
}

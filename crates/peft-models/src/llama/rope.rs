//! How positions turn queries and keys, and the ways to stretch that to longer texts.

use std::f64::consts::TAU;
use std::path::Path;

use serde_json::{Value, json};

use crate::LoadError;

/// Rotary position embedding (Su et al. 2021) of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies; default 10,000.
    pub theta: f64,
    /// How frequencies are changed for longer texts.
    pub scaling: RopeScaling,
}

/// Changes of the frequencies; upstream's `rope_type`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// None.
    Default,
    /// All divided by a factor (`linear`).
    Linear(f64),
    /// Llama 3's: long waves divided by a factor, short ones kept, those between in part (`llama3`).
    Llama3 {
        /// What the longest waves are divided by.
        factor: f64,
        /// `low_freq_factor`.
        low: f64,
        /// `high_freq_factor`.
        high: f64,
        /// `original_max_position_embeddings`.
        original: f64,
    },
    /// Each divided by a factor of its own, as GGUF files store Llama 3's.
    Factors(Vec<f64>),
}

impl Rope {
    /// From a `config.json`: `rope_theta` and `rope_scaling`, or `rope_parameters` as newer files have it.
    pub(super) fn from_json(json: &Value, path: &Path) -> Result<Self, LoadError> {
        let (field, scaling) = match &json["rope_parameters"] {
            Value::Null => ("rope_scaling", &json["rope_scaling"]),
            parameters => ("rope_parameters", parameters),
        };
        let refuse = |expected: &str| LoadError::Config {
            path: path.to_path_buf(),
            field,
            found: scaling.to_string(),
            expected: expected.to_string(),
        };
        let theta = scaling["rope_theta"]
            .as_f64()
            .or(json["rope_theta"].as_f64())
            .unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(refuse("a positive `rope_theta`"));
        }
        let number = |key: &str| {
            scaling[key]
                .as_f64()
                .filter(|value| value.is_finite() && *value > 0.0)
                .ok_or_else(|| refuse(&format!("with a positive `{key}`")))
        };
        let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
        let scaling = match kind {
            None if !scaling.is_null() && field == "rope_scaling" => {
                return Err(refuse("null, or with a `rope_type`"));
            }
            None | Some("default") => RopeScaling::Default,
            Some("linear") => RopeScaling::Linear(number("factor")?),
            Some("llama3") => RopeScaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original: number("original_max_position_embeddings")?,
            },
            Some("factors") => {
                let factors = scaling["factors"].as_array().map(Vec::as_slice);
                let factors: Option<Vec<f64>> = factors
                    .unwrap_or_default()
                    .iter()
                    .map(|factor| factor.as_f64().filter(|factor| *factor > 0.0))
                    .collect();
                RopeScaling::Factors(factors.ok_or_else(|| refuse("with positive `factors`"))?)
            }
            Some(_) => return Err(refuse("null, or of type `default`, `linear` or `llama3`")),
        };
        Ok(Self { theta, scaling })
    }

    /// `rope_scaling` as upstream writes it.
    pub(super) fn scaling_json(&self) -> Value {
        match &self.scaling {
            RopeScaling::Default => Value::Null,
            RopeScaling::Linear(factor) => json!({ "rope_type": "linear", "factor": factor }),
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": *original as u64,
            }),
            RopeScaling::Factors(factors) => json!({ "rope_type": "factors", "factors": factors }),
        }
    }

    /// Radians per position of every pair of a head's features.
    pub(super) fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let pairs = head_dim / 2;
        let frequency = |pair: usize| {
            let plain = self.theta.powf(-((2 * pair) as f64) / head_dim as f64);
            match &self.scaling {
                RopeScaling::Default => plain,
                RopeScaling::Linear(factor) => plain / factor,
                RopeScaling::Factors(factors) => plain / factors.get(pair).copied().unwrap_or(1.0),
                RopeScaling::Llama3 {
                    factor,
                    low,
                    high,
                    original,
                } => {
                    let wave = TAU / plain;
                    if wave > original / low {
                        plain / factor
                    } else if wave < original / high {
                        plain
                    } else {
                        let kept = (original / wave - low) / (high - low);
                        (1.0 - kept) * plain / factor + kept * plain
                    }
                }
            }
        };
        (0..pairs).map(frequency).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(json: Value) -> Result<Rope, LoadError> {
        Rope::from_json(&json, Path::new("config.json"))
    }

    #[test]
    fn llama_3_stretches_long_waves_only() {
        let scaled = rope(json!({ "rope_theta": 500_000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192 } }));
        let scaled = scaled.unwrap().frequencies(128);
        let plain = rope(json!({ "rope_theta": 500_000.0 }))
            .unwrap()
            .frequencies(128);
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-6;
        assert!(close(scaled[0], 1.0) && close(scaled[20], plain[20]));
        assert!(close(scaled[63], plain[63] / 8.0));
        // transformers' `_compute_llama3_parameters`, index 32.
        assert!(scaled[32] < plain[32] && scaled[32] > plain[32] / 8.0);
        let linear = rope(json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } })).unwrap();
        assert!(close(linear.frequencies(8)[1], 0.05));
    }

    #[test]
    fn what_is_not_built_is_refused() {
        for scaling in [
            json!({ "rope_type": "yarn", "factor": 2.0 }),
            json!({ "rope_type": "linear", "factor": 0.0 }),
            json!({ "rope_type": "llama3", "factor": 2.0 }),
            json!({ "factor": 2.0 }),
        ] {
            let error = rope(json!({ "rope_scaling": scaling }))
                .unwrap_err()
                .to_string();
            assert!(error.contains("rope_scaling"), "{error}");
        }
    }
}

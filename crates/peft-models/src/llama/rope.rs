//! Rotary position embedding (RoPE), and its scalings for longer texts.

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
    /// From a `config.json`: `rope_theta` and `rope_scaling`, or `rope_parameters` as newer files have it. Factors
    /// that are those of Llama 3's scaling become that.
    pub(super) fn from_json(json: &Value, path: &Path, head_dim: usize) -> Result<Self, LoadError> {
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
                let factors = factors.filter(|factors| factors.len() == head_dim / 2);
                let expected = || format!("with {} positive `factors`", head_dim / 2);
                let factors = factors.ok_or_else(|| refuse(&expected()))?;
                let rope = Self {
                    theta,
                    scaling: RopeScaling::Factors(factors),
                };
                return Ok(rope.llama3(head_dim).unwrap_or(rope));
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

    /// The same frequencies as Llama 3's scaling, where factors of their own come to that.
    ///
    /// What is kept of a frequency between the long waves and the short ones is linear in it (upstream's
    /// `smooth_factor`), so the line through two of them gives `original / (high - low)` and
    /// `low / (high - low)`; and only the ratios count, so `low` is 1.
    fn llama3(&self, head_dim: usize) -> Option<Self> {
        let RopeScaling::Factors(factors) = &self.scaling else {
            return None;
        };
        let round = |value: f64, near: f64| {
            let whole = value.round();
            if (value - whole).abs() < near * whole {
                whole
            } else {
                value
            }
        };
        let factor = round(factors.iter().copied().fold(1.0, f64::max), 1e-6);
        let plain = Self {
            theta: self.theta,
            scaling: RopeScaling::Default,
        };
        let frequencies = plain.frequencies(head_dim);
        let kept = |own: f64| (1.0 / own - 1.0 / factor) / (1.0 - 1.0 / factor);
        let between: Vec<(f64, f64)> = frequencies
            .iter()
            .zip(factors)
            .map(|(frequency, own)| (frequency / TAU, kept(*own)))
            .filter(|(_, kept)| (1e-3..=0.999).contains(kept))
            .collect();
        let ((x, first), (y, last)) = (*between.first()?, *between.last()?);
        let slope = (first - last) / (x - y);
        let low_part = slope * x - first;
        let rope = Self {
            theta: self.theta,
            scaling: RopeScaling::Llama3 {
                factor,
                low: 1.0,
                high: round(1.0 + 1.0 / low_part, 1e-3),
                original: round(slope / low_part, 1e-3),
            },
        };
        let same = rope
            .frequencies(head_dim)
            .iter()
            .zip(self.frequencies(head_dim))
            .all(|(ours, theirs)| (ours / theirs - 1.0).abs() < 1e-5);
        same.then_some(rope)
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
        Rope::from_json(&json, Path::new("config.json"), 128)
    }

    /// As llama.cpp's converter stores them, in `f32`.
    fn factors(rope: &Rope, head_dim: usize) -> Vec<f32> {
        let plain = Rope {
            theta: rope.theta,
            scaling: RopeScaling::Default,
        };
        let plain = plain.frequencies(head_dim).into_iter();
        plain
            .zip(rope.frequencies(head_dim))
            .map(|(plain, scaled)| (plain / scaled) as f32)
            .collect()
    }

    #[test]
    fn factors_of_llama_3_are_recognised() {
        // Llama 3.1 8B, and 3.2 1B with heads of 64; one that no release has.
        for (head_dim, factor, high, original) in [
            (128, 8.0, 4.0, 8192.0),
            (64, 32.0, 4.0, 8192.0),
            (96, 5.5, 3.0, 4096.0),
        ] {
            let scaling = RopeScaling::Llama3 {
                factor,
                low: 1.0,
                high,
                original,
            };
            let expected = Rope {
                theta: 500_000.0,
                scaling,
            };
            let factors = factors(&expected, head_dim);
            let json = json!({ "rope_theta": 500_000.0,
                "rope_scaling": { "rope_type": "factors", "factors": factors } });
            let read = Rope::from_json(&json, Path::new("config.json"), head_dim).unwrap();
            assert_eq!(read, expected);
            // One that is something else stays what it is, and has all of them.
            let mut other = factors.clone();
            other[head_dim / 4] *= 1.01;
            let json = json!({ "rope_theta": 500_000.0,
                "rope_scaling": { "rope_type": "factors", "factors": other } });
            let read = Rope::from_json(&json, Path::new("config.json"), head_dim).unwrap();
            assert!(matches!(read.scaling, RopeScaling::Factors(_)), "{read:?}");
            assert!(Rope::from_json(&json, Path::new("config.json"), head_dim + 2).is_err());
        }
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

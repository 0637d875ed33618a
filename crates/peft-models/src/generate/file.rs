//! Reading `generation_config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use super::GenerateConfig;
use crate::{LoadError, checkpoint};

/// Settings of upstream's that change what is generated and are not supported, each with the
/// number at which it does nothing.
const UNSUPPORTED: &[(&str, Option<f64>)] = &[
    ("num_beams", Some(1.0)),
    ("num_return_sequences", Some(1.0)),
    ("min_length", Some(0.0)),
    ("min_new_tokens", Some(0.0)),
    ("typical_p", Some(1.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
    ("no_repeat_ngram_size", Some(0.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("guidance_scale", Some(1.0)),
    ("penalty_alpha", Some(0.0)),
    ("top_h", None),
    ("bad_words_ids", None),
    ("sequence_bias", None),
    ("suppress_tokens", None),
    ("begin_suppress_tokens", None),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("exponential_decay_length_penalty", None),
    ("watermarking_config", None),
];

impl GenerateConfig {
    /// Reads `generation_config.json` in `dir`. Fields that are missing or null have their
    /// defaults; fields that do not bear on what is generated, and `max_length`, are ignored.
    ///
    /// # Errors
    ///
    /// [`LoadError::Io`] and [`LoadError::Json`] where there is no such file or it is damaged;
    /// [`LoadError::Config`] for a value out of range, and for a setting that is not supported (beam
    /// search, say) unless its value changes nothing.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = checkpoint::place(dir.as_ref(), "generation_config.json");
        let mut fields: Map<String, Value> = checkpoint::read_json(&path)?;
        fields.retain(|_, value| !value.is_null());
        for &(field, neutral) in UNSUPPORTED {
            if let Some(value) = fields.get(field)
                && (neutral.is_none() || value.as_f64() != neutral)
            {
                let expected = match neutral {
                    Some(number) => format!("{number} or left out: it is not supported"),
                    None => "left out: it is not supported".to_string(),
                };
                return Err(LoadError::Config {
                    path,
                    field,
                    found: value.to_string(),
                    expected,
                });
            }
        }
        let config: Self = match serde_json::from_value(Value::Object(fields)) {
            Ok(config) => config,
            Err(source) => return Err(LoadError::Json { path, source }),
        };
        match config.fault() {
            None => Ok(config),
            Some((field, found, expected)) => Err(LoadError::Config {
                path,
                field,
                found,
                expected: expected.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<GenerateConfig, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
        GenerateConfig::load(dir.path())
    }

    #[test]
    fn upstreams_file_is_read() {
        let found = file(
            r#"{"do_sample": true, "temperature": 0.6, "top_k": null, "top_p": 1, "num_beams": 1,
                "eos_token_id": 2, "stop_strings": "END", "max_length": 4096, "pad_token_id": 0,
                "transformers_version": "4.40.0"}"#,
        );
        let expected = GenerateConfig::default()
            .with_temperature(0.6)
            .with_stop_strings(["END"])
            .with_eos_token_id([2]);
        assert_eq!(found.unwrap(), expected);
        let found = file(r#"{"eos_token_id": [2, 7], "stop_strings": ["a", "b"]}"#).unwrap();
        assert_eq!(found.eos_token_id, Some(vec![2, 7]));
        assert_eq!(found.stop_strings, ["a", "b"]);
        assert!(!found.do_sample);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let config = GenerateConfig::default().with_min_p(0.05).with_seed(9);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<GenerateConfig>(&text).unwrap(),
            config
        );
        assert_eq!(file(&text).unwrap(), config);
    }

    #[test]
    fn settings_that_cannot_be_followed_are_refused() {
        for (text, parts) in [
            (r#"{"num_beams": 4}"#, ["`num_beams` is 4", "must be 1"]),
            (
                r#"{"bad_words_ids": [[3]]}"#,
                ["`bad_words_ids`", "left out"],
            ),
            (r#"{"temperature": 0}"#, ["`temperature` is 0", "above 0"]),
            (r#"{"top_p": 1.5}"#, ["`top_p` is 1.5", "from 0 to 1"]),
            (r#"{"top_k": -1}"#, ["cannot use", "generation_config.json"]),
        ] {
            let error = file(text).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "`{part}` is not in: {error}");
            }
        }
    }
}

//! How the next token is chosen, and when generation ends.

use serde::{Deserialize, Deserializer, Serialize};

use super::GenerateError;
use crate::llama_tokenizer::OneOrMany;

/// Settings of a generation; names, meaning and defaults are those of Hugging Face's
/// `generation_config.json`, except where it says so.
///
/// Greedy by default. With [`do_sample`](Self::do_sample) the next token is drawn, after these
/// steps in this order, as upstream has them: repetition penalty, temperature, top-k, top-p, min-p.
///
/// ```
/// use peft_models::GenerateConfig;
///
/// let config = GenerateConfig::default()
///     .with_max_new_tokens(64)
///     .with_temperature(0.7)
///     .with_top_p(0.9)
///     .with_stop_strings(["\n\n"])
///     .with_seed(7);
/// assert!(config.do_sample);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct GenerateConfig {
    /// The most tokens to generate, at least 1; default 128 (upstream's is 20 less the prompt).
    pub max_new_tokens: usize,
    /// Draw the next token rather than take the most probable one; default false.
    pub do_sample: bool,
    /// What logits are divided by, above 0; default 1. Below 1 the probable tokens become more so.
    /// When sampling only.
    pub temperature: f64,
    /// How many of the most probable tokens are kept; default 50, and 0 keeps all. Tokens as
    /// probable as the last one are kept too. When sampling only (Fan et al., 2018).
    pub top_k: usize,
    /// Keeps the smallest set of most probable tokens whose probabilities add up to this, but at
    /// least one token; 0 to 1, default 1, which keeps all. When sampling only (Holtzman et al.,
    /// 2020).
    pub top_p: f64,
    /// Keeps tokens at least this times as probable as the most probable one; 0 to 1, default
    /// none. When sampling only (Nguyen et al., 2024).
    pub min_p: Option<f64>,
    /// Positive logits of tokens that are in the prompt or were generated are divided by this,
    /// negative ones multiplied; above 0, default 1. Also without sampling (Keskar et al., 2019,
    /// section 4.1).
    pub repetition_penalty: f64,
    /// Seed of the draws; default 0. One seed gives one text, on the same device. Not a setting of
    /// upstream's.
    pub seed: u64,
    /// Texts that end the generation; default none. They are not part of the text generated.
    /// A file may have a text in place of a list.
    #[serde(deserialize_with = "texts")]
    pub stop_strings: Vec<String>,
    /// Tokens that end the generation. Default: those of the tokenizer and of the model's
    /// configuration. An empty list never ends it. A file may have a number in place of a list.
    #[serde(deserialize_with = "ids")]
    pub eos_token_id: Option<Vec<u32>>,
    /// The task of the text, counted from 0, for adapters that have several: those need one, below the number of their
    /// tasks. Default: none is told. Not a setting of
    /// upstream's.
    pub task: Option<usize>,
}

fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let found = Option::<OneOrMany<String>>::deserialize(deserializer)?;
    Ok(found.map(Vec::from).unwrap_or_default())
}

fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u32>>, D::Error> {
    let found = Option::<OneOrMany<u32>>::deserialize(deserializer)?;
    Ok(found.map(Vec::from))
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: None,
            repetition_penalty: 1.0,
            seed: 0,
            stop_strings: Vec::new(),
            eos_token_id: None,
            task: None,
        }
    }
}

impl GenerateConfig {
    /// Sets the most tokens to generate.
    #[must_use]
    pub fn with_max_new_tokens(mut self, tokens: usize) -> Self {
        self.max_new_tokens = tokens;
        self
    }

    /// Sets the task of the text.
    #[must_use]
    pub fn with_task(mut self, task: usize) -> Self {
        self.task = Some(task);
        self
    }

    /// Sets whether tokens are drawn.
    #[must_use]
    pub fn with_do_sample(mut self, sample: bool) -> Self {
        self.do_sample = sample;
        self
    }

    /// Sets the temperature, and turns sampling on.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self.with_do_sample(true)
    }

    /// Sets how many tokens are kept, and turns sampling on.
    #[must_use]
    pub fn with_top_k(mut self, tokens: usize) -> Self {
        self.top_k = tokens;
        self.with_do_sample(true)
    }

    /// Sets the probability that is kept, and turns sampling on.
    #[must_use]
    pub fn with_top_p(mut self, probability: f64) -> Self {
        self.top_p = probability;
        self.with_do_sample(true)
    }

    /// Sets the least probability relative to the greatest, and turns sampling on.
    #[must_use]
    pub fn with_min_p(mut self, ratio: f64) -> Self {
        self.min_p = Some(ratio);
        self.with_do_sample(true)
    }

    /// Sets the repetition penalty.
    #[must_use]
    pub fn with_repetition_penalty(mut self, penalty: f64) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Sets the seed of the draws.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the texts that end the generation.
    #[must_use]
    pub fn with_stop_strings(mut self, texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.stop_strings = texts.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the tokens that end the generation.
    #[must_use]
    pub fn with_eos_token_id(mut self, ids: impl IntoIterator<Item = u32>) -> Self {
        self.eos_token_id = Some(ids.into_iter().collect());
        self
    }

    /// Refuses values that are out of range.
    pub(super) fn check(&self) -> Result<(), GenerateError> {
        match self.fault() {
            None => Ok(()),
            Some((setting, found, expected)) => Err(GenerateError::Setting {
                setting,
                found,
                expected: expected.to_string(),
            }),
        }
    }

    /// The first field whose value is out of range, its value and what is possible.
    pub(super) fn fault(&self) -> Option<(&'static str, String, &'static str)> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let share = |value: f64| (0.0..=1.0).contains(&value);
        if self.max_new_tokens == 0 {
            return Some(("max_new_tokens", "0".to_string(), "at least 1"));
        }
        if self.stop_strings.iter().any(String::is_empty) {
            let expected = "texts of at least one character";
            return Some(("stop_strings", format!("{:?}", self.stop_strings), expected));
        }
        let min_p = self.min_p.unwrap_or(0.0);
        let greedy = "finite and above 0 (for greedy decoding, leave `do_sample` false)";
        let numbers = [
            (
                "temperature",
                self.temperature,
                positive(self.temperature),
                greedy,
            ),
            ("top_p", self.top_p, share(self.top_p), "from 0 to 1"),
            ("min_p", min_p, share(min_p), "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                positive(self.repetition_penalty),
                "finite and above 0",
            ),
        ];
        numbers
            .into_iter()
            .find(|&(_, _, fine, _)| !fine)
            .map(|(field, value, _, expected)| (field, value.to_string(), expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        let config = GenerateConfig::default;
        for (config, name) in [
            (config().with_max_new_tokens(0), "max_new_tokens"),
            (config().with_temperature(f64::NAN), "temperature"),
            (config().with_top_p(-0.1), "top_p"),
            (config().with_min_p(2.0), "min_p"),
            (config().with_repetition_penalty(0.0), "repetition_penalty"),
            (config().with_stop_strings(["a", ""]), "stop_strings"),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(name), "`{name}` is not in: {error}");
        }
        config().check().unwrap();
    }
}

//! X-LoRA's configuration.

use peft_core::method::Common;
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// X-LoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `XLoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "upstream's switches")]
pub struct XLoraConfig {
    /// Width of the hidden states that the classifier sees. Default: the model's, when a classifier is made.
    pub hidden_size: Option<usize>,
    /// The experts: names of adapters, each with the folder that it is loaded from. Where all names are numbers, they
    /// are in the order of these.
    pub adapters: Map<String, Value>,
    /// Whether a token's weights go through a softmax. Default: true.
    pub enable_softmax: bool,
    /// Whether the `top_k_lora` largest weights go through a softmax. Default: false.
    pub enable_softmax_topk: bool,
    /// Whether each layer has weights of its own, else one set serves all. Default: false.
    pub layerwise_scalings: bool,
    /// How many linear layers the classifier has. Default: 1. At least 1, at most 1000.
    pub xlora_depth: usize,
    /// Width between them. Default: 2048. At least 1, at most a million.
    pub xlora_size: usize,
    /// Dropout probability between them, in [0, 1). Default: 0.2.
    pub xlora_dropout_p: f64,
    /// Whether the experts are trained with the classifier. Default: false.
    pub use_trainable_adapters: bool,
    /// Temperature of the softmax. Default: 1. Above 0.
    pub softmax_temperature: f64,
    /// How many experts a token has at a layer. Default: all.
    pub top_k_lora: Option<usize>,
    /// The weight of every expert in the first pass. Default: 0: the classifier sees the base model's states.
    pub scaling_pass_value: f64,
    /// Factor of all weights. Default: 1.
    pub global_scaling_weight: f64,
    /// Fields that every configuration has.
    #[serde(flatten)]
    pub common: Common,
}

impl Default for XLoraConfig {
    fn default() -> Self {
        Self {
            hidden_size: None,
            adapters: Map::new(),
            enable_softmax: true,
            enable_softmax_topk: false,
            layerwise_scalings: false,
            xlora_depth: 1,
            xlora_size: 2048,
            xlora_dropout_p: 0.2,
            use_trainable_adapters: false,
            softmax_temperature: 1.0,
            top_k_lora: None,
            scaling_pass_value: 0.0,
            global_scaling_weight: 1.0,
            common: Common::default(),
        }
    }
}

pub(crate) const XLORA: &str = "X-LoRA";

impl XLoraConfig {
    /// Upstream's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses a field that cannot work.
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub fn validate(&self) -> Result<()> {
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(XLORA, field, value, expected))
        };
        if !(1..=1000).contains(&self.xlora_depth) {
            return refuse("xlora_depth", &self.xlora_depth, "in [1, 1000]");
        }
        if !(1..=1_000_000).contains(&self.xlora_size) {
            return refuse("xlora_size", &self.xlora_size, "in [1, 1000000]");
        }
        if !(0.0..1.0).contains(&self.xlora_dropout_p) {
            return refuse("xlora_dropout_p", &self.xlora_dropout_p, "in [0, 1)");
        }
        let temperature = self.softmax_temperature;
        if !(temperature > 0.0 && temperature.is_finite()) {
            return refuse(
                "softmax_temperature",
                &temperature,
                "a finite number above 0",
            );
        }
        if self.top_k_lora == Some(0) {
            return refuse(
                "top_k_lora",
                &self.top_k_lora,
                "at least 1, or none for all",
            );
        }
        for (field, value) in [
            ("scaling_pass_value", self.scaling_pass_value),
            ("global_scaling_weight", self.global_scaling_weight),
        ] {
            if !value.is_finite() {
                return refuse(field, &value, "a finite number");
            }
        }
        Ok(())
    }
}

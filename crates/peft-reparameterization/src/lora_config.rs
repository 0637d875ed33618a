//! LoRA's configuration: fields and how to set them.

use peft_core::{Common, Selection, Targets};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which biases are trained besides the factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// All of the model.
    All,
    /// Those of the adapted layers.
    LoraOnly,
}

/// Initial values of the factors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InitLora {
    /// `true`: A Kaiming-uniform with a = sqrt(5), B zero (embeddings: A zero, B normal).
    /// `false`: the same with B random too, so that the fresh adapter does change outputs; for
    /// tests.
    Default(bool),
    /// `"gaussian"`: A normal with standard deviation 1 / r, B zero. `"orthogonal"` and `"eva"` can
    /// be loaded, not drawn yet.
    Named(String),
}

impl Default for InitLora {
    fn default() -> Self {
        Self::Default(true)
    }
}

/// LoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank. Default: 8. At least 1, at most the layer's smaller side.
    #[serde(default = "default_rank")]
    pub r: usize,
    /// Scaling numerator. Default: 8.
    #[serde(default = "default_alpha")]
    pub lora_alpha: f64,
    /// Dropout probability on the factors' input, in [0, 1). Default: 0. It acts on the activation
    /// side only: a model that calls Burn's layers directly trains without it.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Scale by alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023). Default: false.
    #[serde(default)]
    pub use_rslora: bool,
    /// Biases to train. Default: none.
    #[serde(default)]
    pub bias: Bias,
    /// Initial values. Default: `true`.
    #[serde(default)]
    pub init_lora_weights: InitLora,
    /// Other ranks for some layers: the key is a regular expression for the end of the name.
    #[serde(default)]
    pub rank_pattern: Map<String, Value>,
    /// Other alphas for some layers.
    #[serde(default)]
    pub alpha_pattern: Map<String, Value>,
    /// Layers to adapt. Default: `all-linear`.
    #[serde(flatten)]
    pub targets: Targets,
    /// Fields that every method has.
    #[serde(flatten)]
    pub common: Common,
}

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self::new(default_rank())
    }
}

impl LoraConfig {
    /// LoRA of rank `r` on all linear layers but the output head.
    pub fn new(r: usize) -> Self {
        Self {
            r,
            lora_alpha: default_alpha(),
            lora_dropout: 0.0,
            use_rslora: false,
            bias: Bias::None,
            init_lora_weights: InitLora::default(),
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            targets: Targets::default(),
            common: Common::default(),
        }
    }

    /// Sets alpha.
    #[must_use]
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.lora_alpha = alpha;
        self
    }

    /// Sets the dropout probability.
    #[must_use]
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.lora_dropout = dropout;
        self
    }

    /// Scales by alpha / sqrt(r).
    #[must_use]
    pub fn with_rslora(mut self, use_rslora: bool) -> Self {
        self.use_rslora = use_rslora;
        self
    }

    /// Sets which biases are trained.
    #[must_use]
    pub fn with_bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }

    /// Sets the initial values.
    #[must_use]
    pub fn with_init(mut self, init: InitLora) -> Self {
        self.init_lora_weights = init;
        self
    }

    /// Sets the layers to adapt: a list of names, or one regular expression, or `all-linear`.
    #[must_use]
    pub fn with_targets(mut self, targets: impl Into<Selection>) -> Self {
        self.targets.target_modules = Some(targets.into());
        self
    }

    /// Leaves layers out that are selected otherwise.
    #[must_use]
    pub fn with_excluded(mut self, excluded: impl Into<Selection>) -> Self {
        self.targets.exclude_modules = Some(excluded.into());
        self
    }

    /// Sets another rank for layers whose name ends in `pattern`, a regular expression.
    #[must_use]
    pub fn with_rank_for(mut self, pattern: &str, r: usize) -> Self {
        self.rank_pattern.insert(pattern.into(), r.into());
        self
    }

    /// Sets another alpha for layers whose name ends in `pattern`, a regular expression.
    #[must_use]
    pub fn with_alpha_for(mut self, pattern: &str, alpha: f64) -> Self {
        self.alpha_pattern.insert(pattern.into(), alpha.into());
        self
    }
}

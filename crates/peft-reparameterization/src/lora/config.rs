//! LoRA's configuration: fields and how to set them.

use std::collections::BTreeMap;

use peft_core::Targets;
use peft_core::method::{Common, Family, MethodInfo, by_peft_type, config_from_json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use peft_core::method::Bias;
use peft_core::target_builders;

/// Initial values of the factors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InitLora {
    /// `true`: A Kaiming-uniform with a = sqrt(5), B zero (embeddings: A zero, B normal).
    /// `false`: the same with B random too, so that the fresh adapter does change outputs; for
    /// tests.
    Default(bool),
    /// By name:
    ///
    /// - `"gaussian"`: A normal with standard deviation 1 / r, B zero;
    /// - `"orthogonal"`: A and B random, with A·B = 0; even ranks only;
    /// - `"pissa"`: the largest r singular values of the base, which is without them (Meng et al. 2024);
    ///   `"pissa_niter_4"` the same in 4 iterations of a faster, approximate algorithm;
    /// - `"olora"`: from the QR decomposition of the base, which is without the product (Büyükakyüz 2024);
    /// - `"eva"`: A from activations, set by [`eva`](crate::eva) (Paischer et al. 2024); B zero.
    Named(String),
}

impl Default for InitLora {
    fn default() -> Self {
        Self::Default(true)
    }
}

/// Which rows of which embedding tables are trained whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TrainableTokenIndices {
    /// Of the model's first table.
    OfTokens(Vec<usize>),
    /// By the end of the table's name.
    ByTable(BTreeMap<String, Vec<usize>>),
}

impl From<bool> for InitLora {
    fn from(zero: bool) -> Self {
        Self::Default(zero)
    }
}

impl From<&str> for InitLora {
    fn from(name: &str) -> Self {
        Self::Named(name.into())
    }
}

/// LoRA's registration.
pub static LORA: MethodInfo = MethodInfo {
    name: "lora",
    peft_type: "LORA",
    title: "LoRA",
    family: Family::Reparameterization,
    reference: "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1",
    identity_at_init: true,
    mergeable: true,
    parse: config_from_json::<LoraConfig>,
    recognises: by_peft_type,
};

/// LoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // Upstream's fields.
pub struct LoraConfig {
    /// Rank. Default: 8. At least 1. More than the layer's smaller side adds parameters, not what the change can
    /// be; "pissa" and "olora" refuse it.
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
    /// Weight-decomposed LoRA (Liu et al. 2024): the length of each output's weights is trained apart from
    /// their direction. Default: false.
    #[serde(default)]
    pub use_dora: bool,
    /// Biases to train. Default: none.
    #[serde(default)]
    pub bias: Bias,
    /// Gives B a bias, which is trained. Default: false. The layers must have biases of their own.
    #[serde(default)]
    pub lora_bias: bool,
    /// Rows of embedding tables that are trained whole besides, as for new tokens: a list for the table of
    /// the tokens, or lists by the table's name. Default: none. A table cannot be among the targets, too.
    #[serde(default)]
    pub trainable_token_indices: Option<TrainableTokenIndices>,
    /// Whether an output head that is the embedding table goes on being it: a saved copy of either, or LoRA on either,
    /// then is one for both, on the table. Default: false, the two part. Not with `use_dora` or `lora_bias` on
    /// them.
    #[serde(default)]
    pub ensure_weight_tying: bool,
    /// Trains B only (LoRA-FA, Zhang et al. 2023). Default: false. Upstream has no such field: there it
    /// is a setting of the optimizer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freeze_a: bool,
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
            use_dora: false,
            bias: Bias::None,
            lora_bias: false,
            trainable_token_indices: None,
            ensure_weight_tying: false,
            freeze_a: false,
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

    /// Trains lengths apart from directions.
    #[must_use]
    pub fn with_dora(mut self, use_dora: bool) -> Self {
        self.use_dora = use_dora;
        self
    }

    /// Gives B a bias.
    #[must_use]
    pub fn with_lora_bias(mut self, lora_bias: bool) -> Self {
        self.lora_bias = lora_bias;
        self
    }

    /// Trains these rows of the token embeddings, too.
    #[must_use]
    pub fn with_token_rows(mut self, rows: impl Into<Vec<usize>>) -> Self {
        self.trainable_token_indices = Some(TrainableTokenIndices::OfTokens(rows.into()));
        self
    }

    /// Keeps a head that is the embedding table equal to it.
    #[must_use]
    pub fn with_weight_tying(mut self, ensure_weight_tying: bool) -> Self {
        self.ensure_weight_tying = ensure_weight_tying;
        self
    }

    /// Trains B only.
    #[must_use]
    pub fn with_frozen_a(mut self, freeze_a: bool) -> Self {
        self.freeze_a = freeze_a;
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
    pub fn with_init(mut self, init: impl Into<InitLora>) -> Self {
        self.init_lora_weights = init.into();
        self
    }

    target_builders!();

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

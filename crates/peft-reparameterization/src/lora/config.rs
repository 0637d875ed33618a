//! LoRA's configuration: fields and how to set them.

use std::collections::BTreeMap;

use peft_core::Targets;
use peft_core::method::{Bias, ByLayer, Common, method_config};
use serde::{Deserialize, Serialize};

use crate::lora::adapterhub::AdapterHubLora;
use crate::lora::block_diagonal::BdLoraConfig;
use crate::lora::corda::CordaConfig;
use crate::lora::gradient_start::LoraGaConfig;
use crate::lora::kasa::KasaConfig;
use crate::lora::loftq::LoftqConfig;
use crate::lora::monteclora::MontecloraConfig;
use crate::lora::velora::VeloraConfig;

/// Initial values of the factors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
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
    /// - `"mica"`: B the directions of the smallest r singular values of the base, frozen; A zero;
    /// - `"loftq"`: the best of their rank for what quantization to 4 bits takes from the base, which is left as that leaves
    ///   it (Li et al. 2023); see [`loftq_config`](LoraConfig::loftq_config);
    /// - `"corda"`: from the base and the second moments of its inputs, taken out of the base (Yang et al. 2024); see
    ///   [`corda_config`](LoraConfig::corda_config). Attached by `attach_on`, or by `attach_with` with a calibration;
    /// - `"lora_ga"`: from the gradients of the base, taken out of the base (Wang et al. 2024); see
    ///   [`lora_ga_config`](LoraConfig::lora_ga_config). Attached by `attach_on`, or by `attach_with` with a calibration.
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
#[non_exhaustive]
pub enum TrainableTokenIndices {
    /// Of the model's first table.
    OfTokens(Vec<usize>),
    /// By the end of the table's name.
    ByTable(BTreeMap<String, Vec<usize>>),
}

impl From<Vec<usize>> for TrainableTokenIndices {
    fn from(rows: Vec<usize>) -> Self {
        Self::OfTokens(rows)
    }
}

impl<const N: usize> From<[usize; N]> for TrainableTokenIndices {
    fn from(rows: [usize; N]) -> Self {
        Self::OfTokens(rows.into())
    }
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

/// LoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `LoraConfig`.
#[method_config(
    LORA, peft_type = "LORA", title = "LoRA", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1",
    parse = LoraConfig::PARSE, recognises = LoraConfig::RECOGNISES, to_json = LoraConfig::json,
    unsupported("use_qalora", "target_parameters", "arrow_config", "fan_in_fan_out")
)]
pub struct LoraConfig {
    /// Rank. Default: 8. At least 1. More than the layer's smaller side adds parameters, not what the change can
    /// be; "pissa" and "olora" refuse it.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// Scaling numerator. Default: 8.
    #[field(default = 8.0, finite)]
    pub lora_alpha: f64,
    /// Dropout probability on the factors' input, in [0, 1). Default: 0. It acts on the activation
    /// side only: a model that calls Burn's layers directly trains without it.
    #[field(probability)]
    pub lora_dropout: f64,
    /// Scale by alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023). Default: false.
    pub use_rslora: bool,
    /// Weight-decomposed LoRA (Liu et al. 2024): the length of each output's weights is trained apart from
    /// their direction. Default: false.
    pub use_dora: bool,
    /// Biases to train. Default: none.
    pub bias: Bias,
    /// Gives B a bias, which is trained. Default: false. The layers must have biases of their own.
    pub lora_bias: bool,
    /// Rows of embedding tables that are trained whole besides, as for new tokens: a list for the table of
    /// the tokens, or lists by the table's name. Default: none. A table cannot be among the targets, too.
    pub trainable_token_indices: Option<TrainableTokenIndices>,
    /// Whether an output head that is the embedding table goes on being it: a saved copy of either, or LoRA on either,
    /// then is one for both, on the table. Default: false, the two part. Not with `use_dora` or `lora_bias` on
    /// them.
    pub ensure_weight_tying: bool,
    /// Trains B only (LoRA-FA, Zhang et al. 2023). Default: false. Upstream has no such field: there it
    /// is a setting of the optimizer.
    #[field(skip_false)]
    pub freeze_a: bool,
    /// A trained gate in [0, 1] for each text and layer, in place of the scale (UniPELT). Default: false. Only with
    /// `adapterhub`.
    #[field(skip_false)]
    pub use_gating: bool,
    /// One factor of each layer in blocks on its diagonal (BD-LoRA). Default: none.
    pub use_bdlora: Option<BdLoraConfig>,
    /// Singular values of its own, on a base without its r smallest ones (KaSA, Wang et al. 2024). Default: none.
    pub kasa_config: Option<KasaConfig>,
    /// Acts from the last of these token sequences in a text on, and nowhere in a text without one (aLoRA, Greenewald et
    /// al. 2025). Default: none, on all tokens.
    pub alora_invocation_tokens: Option<Vec<usize>>,
    /// Keeps few numbers of A's inputs while it is trained (VeLoRA, Miles et al. 2024). Default: none.
    pub velora_config: Option<VeloraConfig>,
    /// Draws A around its mean while it is trained (MonteCLoRA, Sengupta et al. 2025). Default: none.
    pub monteclora_config: Option<MontecloraConfig>,
    /// How `"loftq"` quantizes. Default: 4 bits, one iteration.
    #[field(default = Some(LoftqConfig::default()))]
    pub loftq_config: Option<LoftqConfig>,
    /// Which directions `"corda"` trains. Default: those of `CordaConfig::default()`.
    pub corda_config: Option<CordaConfig>,
    /// Which directions and lengths `"lora_ga"` begins with. Default: those of `LoraGaConfig::default()`.
    pub lora_ga_config: Option<LoraGaConfig>,
    /// Damping δ, above 0, of the Riemannian preconditioner of gradients (Zhang and Pilanci 2024); upstream's default is
    /// 1e-2. It acts in a training that calls the model's training hooks. Default: none, gradients stay as they are.
    /// Upstream has no such field: there it is a setting of the optimizer. Not stored.
    #[field(skip, positive)]
    pub riemannian: Option<f64>,
    /// Writes files in AdapterHub's layout, and adapts the layers that these fields of its name, in place of
    /// `target_modules`. Default: none, Hugging Face PEFT's layout.
    #[field(skip)]
    pub adapterhub: Option<AdapterHubLora>,
    /// Initial values. Default: `true`.
    pub init_lora_weights: InitLora,
    /// Other ranks for some layers: the key is a regular expression for the end of the name.
    #[field(at_least = 1)]
    pub rank_pattern: ByLayer<usize>,
    /// Other alphas for some layers.
    #[field(finite)]
    pub alpha_pattern: ByLayer<f64>,
    /// Layers to adapt. Default: `all-linear`.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl LoraConfig {
    /// The short form of [`with_lora_alpha`](Self::with_lora_alpha).
    #[must_use]
    pub fn with_alpha(self, alpha: f64) -> Self {
        self.with_lora_alpha(alpha)
    }
}

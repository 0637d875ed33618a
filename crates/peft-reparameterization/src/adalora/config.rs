//! AdaLoRA's configuration: fields and how to set them.

use std::collections::BTreeMap;

use peft_core::method::{
    Bias, Common, Family, MethodInfo, by_peft_type, config_from_json, read_patterns,
};
use peft_core::{Result, Targets, target_builders};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::lora::config::InitLora;

/// AdaLoRA's registration.
pub static ADALORA: MethodInfo = MethodInfo {
    name: "adalora",
    peft_type: "ADALORA",
    title: "AdaLoRA",
    family: Family::Reparameterization,
    reference: "Zhang et al. 2023, Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, section 3",
    identity_at_init: true,
    mergeable: true,
    parse: config_from_json::<AdaLoraConfig>,
    recognises: by_peft_type,
};

/// Fields of upstream's that change what a checkpoint means and that are not built.
pub(crate) const UNSUPPORTED: &[&str] = &[
    "use_dora",
    "loftq_config",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
];

/// AdaLoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `AdaLoraConfig`.
///
/// Those of the schedule act in a training loop that drives
/// [`PeftModule::training_hooks`](peft_core::PeftModule::training_hooks); without it AdaLoRA keeps its initial rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdaLoraConfig {
    /// Rank at the start. Default: 12. At least 1, at most the layer's smaller side.
    #[serde(default = "default_init_r")]
    pub init_r: usize,
    /// Average rank over all layers at the end. Default: 8. At least 1; for the schedule at most `init_r`.
    #[serde(default = "default_target_r")]
    pub target_r: usize,
    /// Steps at the start without masking. Default: 0.
    #[serde(default)]
    pub tinit: usize,
    /// Steps at the end with a fixed mask. Default: 0.
    #[serde(default)]
    pub tfinal: usize,
    /// Steps from one allocation of ranks to the next. Default: 1.
    #[serde(default = "default_delta_t", rename = "deltaT")]
    pub delta_t: usize,
    /// Smoothing of the sensitivities, in (0, 1). Default: 0.85.
    #[serde(default = "default_beta")]
    pub beta1: f64,
    /// Smoothing of their uncertainties, in (0, 1). Default: 0.85.
    #[serde(default = "default_beta")]
    pub beta2: f64,
    /// Weight of the penalty that keeps A and B orthogonal, at least 0. Default: 0.5.
    #[serde(default = "default_orth_reg_weight")]
    pub orth_reg_weight: f64,
    /// Steps that `tinit`, `tfinal` and `deltaT` are out of; more than the first two together. A training of
    /// another length stretches all three. Default: none, they are steps of whatever training there is. The
    /// file then names the least that upstream accepts, `tinit` + `tfinal` + 1, which stretches nothing.
    #[serde(default)]
    pub total_step: Option<usize>,
    /// Which singular values are left, by layer: `<layer>.lora_E` and `init_r` times true or false. Written
    /// after a training with the schedule. Default: all.
    #[serde(default)]
    pub rank_pattern: Option<Map<String, Value>>,
    /// Scaling numerator. Default: 8. Above 0; from a file, 0 and less stand for the layer's rank.
    #[serde(default = "default_alpha")]
    pub lora_alpha: f64,
    /// Dropout probability on the input of A, in [0, 1). Default: 0. It acts on the activation side only.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Biases to train. Default: none.
    #[serde(default)]
    pub bias: Bias,
    /// Initial values. Default: `true`: E zero, A and B normal with standard deviation 0.02, as for any
    /// name. `false`: all normal with standard deviation 1, so that the fresh adapter does change
    /// outputs; for tests.
    #[serde(default)]
    pub init_lora_weights: InitLora,
    /// Layers to adapt. Default: `all-linear`.
    #[serde(flatten)]
    pub targets: Targets,
    /// Fields that every method has.
    #[serde(flatten)]
    pub common: Common,
}

fn default_init_r() -> usize {
    12
}

fn default_target_r() -> usize {
    8
}

fn default_delta_t() -> usize {
    1
}

fn default_beta() -> f64 {
    0.85
}

fn default_orth_reg_weight() -> f64 {
    0.5
}

fn default_alpha() -> f64 {
    8.0
}

impl Default for AdaLoraConfig {
    fn default() -> Self {
        Self::new(default_init_r(), default_target_r())
    }
}

impl AdaLoraConfig {
    /// AdaLoRA from rank `init_r` to `target_r` on the average, on all linear layers but the output head.
    pub fn new(init_r: usize, target_r: usize) -> Self {
        Self {
            init_r,
            target_r,
            tinit: 0,
            tfinal: 0,
            delta_t: default_delta_t(),
            beta1: default_beta(),
            beta2: default_beta(),
            orth_reg_weight: default_orth_reg_weight(),
            total_step: None,
            rank_pattern: None,
            lora_alpha: default_alpha(),
            lora_dropout: 0.0,
            bias: Bias::None,
            init_lora_weights: InitLora::default(),
            targets: Targets::default(),
            common: Common::default(),
        }
    }

    /// Sets the steps before and after masking, and those from one allocation to the next.
    #[must_use]
    pub fn with_phases(mut self, tinit: usize, tfinal: usize, delta_t: usize) -> Self {
        (self.tinit, self.tfinal, self.delta_t) = (tinit, tfinal, delta_t);
        self
    }

    /// Sets the steps that these are out of: a training of another length stretches them.
    #[must_use]
    pub fn with_total_step(mut self, total_step: usize) -> Self {
        self.total_step = Some(total_step);
        self
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

    /// Sets the weight of the orthogonality penalty.
    #[must_use]
    pub fn with_orthogonality(mut self, weight: f64) -> Self {
        self.orth_reg_weight = weight;
        self
    }

    /// Sets which biases are trained.
    #[must_use]
    pub fn with_bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }

    target_builders!();

    /// The least `total_step` that upstream accepts.
    pub(crate) fn least_steps(&self) -> usize {
        self.tinit.saturating_add(self.tfinal).saturating_add(1)
    }

    /// `tinit`, `tfinal` and `deltaT` in a training of so many steps.
    pub(crate) fn phases(&self, steps: usize) -> [usize; 3] {
        let [tinit, tfinal, delta_t] = [self.tinit, self.tfinal, self.delta_t];
        match self.total_step {
            // The least one is also what was written for none.
            Some(total) if total > self.least_steps() => {
                let [tinit, tfinal, delta_t] =
                    [tinit, tfinal, delta_t].map(|count| count.saturating_mul(steps) / total);
                [tinit, tfinal, delta_t.max(1)]
            }
            _ => [tinit, tfinal, delta_t],
        }
    }

    /// The masks of `rank_pattern`, by layer.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for anything else than `init_r` times true or false.
    pub(crate) fn masks(&self) -> Result<BTreeMap<String, Vec<bool>>> {
        let Some(fields) = &self.rank_pattern else {
            return Ok(BTreeMap::new());
        };
        let expected = format!("init_r times true or false, which is {} times", self.init_r);
        let read = |value: &Value| -> Option<Vec<bool>> {
            let mask = value.as_array()?.iter().map(Value::as_bool);
            mask.collect::<Option<Vec<bool>>>()
                .filter(|mask| mask.len() == self.init_r)
        };
        let found = read_patterns(fields, (&ADALORA, "rank_pattern"), &expected, read)?;
        Ok(found
            .into_iter()
            // The adapter's name may follow.
            .map(|(key, mask)| match key.rsplit_once(".lora_E") {
                Some((layer, _)) => (layer.to_string(), mask),
                None => (key, mask),
            })
            .collect())
    }
}

//! AdaLoRA's configuration: fields and how to set them.

use std::collections::BTreeMap;

use peft_core::method::{
    Bias, Common, MethodConfig as _, config_to_json, method_config, read_by_layer,
};
use peft_core::{Result, Targets};
use serde_json::{Map, Value};

use crate::lora::config::InitLora;

/// AdaLoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `AdaLoraConfig`.
///
/// Those of the schedule act in a training loop that drives
/// [`PeftModule::training_hooks`](peft_core::PeftModule::training_hooks); without it AdaLoRA keeps its initial rank.
#[method_config(
    ADALORA, peft_type = "ADALORA", title = "AdaLoRA", family = Reparameterization, identity_at_init, mergeable, new(init_r, target_r),
    reference = "Zhang et al. 2023, Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, section 3",
    unsupported("use_dora", "loftq_config", "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens"),
    to_json = AdaLoraConfig::json
)]
pub struct AdaLoraConfig {
    /// Rank at the start. Default: 12. At least 1, at most the layer's smaller side.
    #[field(default = 12, at_least = 1)]
    pub init_r: usize,
    /// Average rank over all layers at the end. Default: 8. At least 1; for the schedule at most `init_r`.
    #[field(default = 8, at_least = 1)]
    pub target_r: usize,
    /// Steps at the start without masking. Default: 0.
    #[field(any)]
    pub tinit: usize,
    /// Steps at the end with a fixed mask. Default: 0.
    #[field(any)]
    pub tfinal: usize,
    /// Steps from one allocation of ranks to the next. Default: 1.
    #[field(default = 1, rename = "deltaT", at_least = 1)]
    pub delta_t: usize,
    /// Smoothing of the sensitivities, in (0, 1). Default: 0.85.
    #[field(default = 0.85, above = 0.0, below = 1.0)]
    pub beta1: f64,
    /// Smoothing of their uncertainties, in (0, 1). Default: 0.85.
    #[field(default = 0.85, above = 0.0, below = 1.0)]
    pub beta2: f64,
    /// Weight of the penalty that keeps A and B orthogonal, at least 0. Default: 0.5.
    #[field(default = 0.5, at_least = 0.0)]
    pub orth_reg_weight: f64,
    /// Steps that `tinit`, `tfinal` and `deltaT` are out of; more than the first two together. A training of
    /// another length stretches all three. Default: none, they are steps of whatever training there is. The
    /// file then names the least that upstream accepts, `tinit` + `tfinal` + 1, which stretches nothing.
    #[field(any)]
    pub total_step: Option<usize>,
    /// Which singular values are left, by layer: `<layer>.lora_E` and `init_r` times true or false. Written
    /// after a training with the schedule. Default: all.
    pub rank_pattern: Option<Map<String, Value>>,
    /// Scaling numerator. Default: 8. Above 0; from a file, 0 and less stand for the layer's rank.
    #[field(default = 8.0, finite)]
    pub lora_alpha: f64,
    /// Dropout probability on the input of A, in [0, 1). Default: 0. It acts on the activation side only.
    #[field(probability)]
    pub lora_dropout: f64,
    /// Biases to train. Default: none.
    pub bias: Bias,
    /// Initial values. Default: `true`: E zero, A and B normal with standard deviation 0.02, as for any
    /// name. `false`: all normal with standard deviation 1, so that the fresh adapter does change
    /// outputs; for tests.
    pub init_lora_weights: InitLora,
    /// Layers to adapt. Default: `all-linear`.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl AdaLoraConfig {
    /// Sets the steps before and after masking, and those from one allocation to the next.
    #[must_use]
    pub fn with_phases(mut self, tinit: usize, tfinal: usize, delta_t: usize) -> Self {
        (self.tinit, self.tfinal, self.delta_t) = (tinit, tfinal, delta_t);
        self
    }

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
        let found = read_by_layer(fields, (&ADALORA, "rank_pattern"), &expected, read)?;
        Ok(found
            .into_iter()
            // The adapter's name may follow.
            .map(|(key, mask)| match key.rsplit_once(".lora_E") {
                Some((layer, _)) => (layer.to_string(), mask),
                None => (key, mask),
            })
            .collect())
    }

    /// With the least `total_step` that upstream accepts, where there is none; and with LoRA's word in `bias`.
    fn json(&self) -> Value {
        let mut json = config_to_json(self, self.info());
        if self.total_step.is_none() {
            json["total_step"] = self.least_steps().into();
        }
        json
    }
}

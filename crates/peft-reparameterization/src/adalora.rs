//! AdaLoRA: a change in the form of a singular value decomposition, whose rank training decides.

use std::collections::BTreeMap;

use burn::nn::DropoutConfig;
use peft_core::method::{
    Common, Family, LayerKind, Layout, Method, MethodHooks, MethodInfo, Plan, States, by_peft_type,
    config_from_json, config_to_json,
};
use peft_core::{Error, Result, Targets};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::adalora_schedule::{AdaLoraSchedule, prune};
use crate::adalora_state::AdaLora;
use crate::lora_config::InitLora;
use peft_core::method::{
    Bias, LINEAR_AND_CONV2D, read_patterns, refuse_unsupported, select, train_biases,
};
use peft_core::target_builders;

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
const UNSUPPORTED: &[&str] = &[
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
    /// Which singular values are left, by layer: `<layer>.lora_E` and `init_r` times true or false. TensorSource
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
    fn least_steps(&self) -> usize {
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

impl Method for AdaLoraConfig {
    fn info(&self) -> &'static MethodInfo {
        &ADALORA
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn validate(&self) -> Result<()> {
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(ADALORA.title, field, value, expected))
        };
        let counts = [
            ("init_r", self.init_r),
            ("target_r", self.target_r),
            ("deltaT", self.delta_t),
        ];
        for (field, count) in counts {
            if count == 0 {
                return refuse(field, &count, "at least 1");
            }
        }
        for (field, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(beta > 0.0 && beta < 1.0) {
                return refuse(field, &beta, "above 0 and below 1");
            }
        }
        let weight = self.orth_reg_weight;
        if !(weight.is_finite() && weight >= 0.0) {
            return refuse("orth_reg_weight", &weight, "a finite number of at least 0");
        }
        if !self.lora_alpha.is_finite() {
            return refuse("lora_alpha", &self.lora_alpha, "a finite number");
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return refuse("lora_dropout", &self.lora_dropout, "in [0, 1)");
        }
        if let Some(total) = self.total_step
            && self.tinit.saturating_add(self.tfinal) >= total
        {
            return refuse("total_step", &total, "more than tinit + tfinal");
        }
        refuse_unsupported(&self.common.unknown, &ADALORA, UNSUPPORTED)?;
        self.masks().map(|_| ())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        if plan.is_new() && self.lora_alpha <= 0.0 {
            let (field, alpha) = ("lora_alpha", self.lora_alpha);
            return Err(Error::config(ADALORA.title, field, alpha, "above 0"));
        }
        let targets = select(&self.targets, layout, plan, &ADALORA, LINEAR_AND_CONV2D)?;
        let masks = self.masks()?;
        let names = || targets.iter().map(|(layer, _)| layer.name.as_str());
        let used = |key: &&str| names().any(|name| name == *key);
        let unused: Vec<_> = masks.keys().map(String::as_str).collect();
        let unused: Vec<_> = unused.into_iter().filter(|key| !used(key)).collect();
        if plan.is_new() && !unused.is_empty() {
            let field = "rank_pattern";
            return Err(Error::unused_pattern(ADALORA.title, field, unused, names()));
        }
        for &(layer, weight) in &targets {
            let rank = match masks.get(&layer.name) {
                Some(mask) => mask.iter().filter(|kept| **kept).count(),
                None => self.init_r,
            };
            let shape = weight.shape();
            let (rows, columns) = match layer.kind {
                LayerKind::Linear => (shape[0], shape[1]),
                _ => (shape[1..].iter().product(), shape[0]),
            };
            let most = rows.min(columns);
            if plan.is_new() && rank > most {
                let expected = format!("`{}` has shape {shape:?}, so at most {most}", layer.name);
                return Err(Error::config(ADALORA.title, "init_r", rank, expected));
            }
            let alpha = if self.lora_alpha > 0.0 {
                self.lora_alpha
            } else {
                rank as f64
            };
            let like = (&weight.device(), weight.dtype());
            let random = self.init_lora_weights == InitLora::Default(false);
            let std = if random { 1.0 } else { 0.02 };
            let init = plan.init();
            let state = AdaLora {
                lora_a: init.normal([rows, rank], std, like),
                lora_e: if random {
                    init.normal([rank, 1], std, like)
                } else {
                    init.zeros([rank, 1], like)
                },
                lora_b: init.normal([rank, columns], std, like),
                // Upstream divides so that a rank of 0 divides by something.
                scale: alpha / (self.init_r as f64 + 1e-5),
                dropout: DropoutConfig::new(self.lora_dropout).init(),
                kept: None,
            };
            plan.adapt_weight(weight, state);
        }
        train_biases(self.bias, layout, &targets, plan);
        Ok(())
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.init_r)
    }

    fn schedule(&self, steps: usize, states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        // Modules that are saved whole may have taken all of the layers.
        if states.of::<AdaLora>().next().is_none() {
            return Ok(None);
        }
        Ok(Some(Box::new(AdaLoraSchedule::new(self, steps, states)?)))
    }

    fn finalize(&self, states: &mut States) -> Result<Map<String, Value>> {
        prune(self, states)
    }

    fn to_json(&self) -> Value {
        let mut json = config_to_json(self, &ADALORA);
        if self.total_step.is_none() {
            json["total_step"] = self.least_steps().into();
        }
        json
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_with_and_without_the_adapters_name() {
        let json = serde_json::json!({
            "init_r": 3,
            "rank_pattern": { "a.b.lora_E": [true, false, true], "c.lora_E.default": [false, false, false] },
        });
        let config: AdaLoraConfig = serde_json::from_value(json).unwrap();
        let masks = config.masks().unwrap();
        assert_eq!(masks["a.b"], [true, false, true]);
        assert_eq!(masks["c"], [false; 3]);
        let longer = AdaLoraConfig {
            init_r: 4,
            ..config
        };
        let refused = longer.validate().unwrap_err().to_string();
        assert!(refused.contains("rank_pattern"), "{refused}");
    }

    #[test]
    fn upstream_reads_what_was_saved_without_a_schedule() {
        let config = AdaLoraConfig::new(4, 2).with_phases(5, 7, 1);
        assert_eq!(config.to_json()["total_step"], 13);
        // And stretches nothing when it is read again.
        let read: AdaLoraConfig = serde_json::from_value(config.to_json()).unwrap();
        assert_eq!(read.phases(100), [5, 7, 1]);
        let empty: AdaLoraConfig = serde_json::from_value(serde_json::json!({})).unwrap();
        assert_eq!(empty, AdaLoraConfig::default());
    }

    #[test]
    fn phases_are_stretched_to_the_training() {
        let config = AdaLoraConfig::new(4, 2).with_phases(10, 30, 2);
        assert_eq!(config.phases(64), [10, 30, 2]);
        let config = config.with_total_step(100);
        assert_eq!(config.phases(100), [10, 30, 2]);
        assert_eq!(config.phases(1000), [100, 300, 20]);
        assert_eq!(config.phases(64), [6, 19, 1]);
        assert_eq!(config.phases(2), [0, 0, 1]);
    }
}

//! Every setting of a run.

use std::fmt::Debug;

use peft_models::Moment;
use serde::{Deserialize, Serialize};

use crate::data::ChatTemplate;
use crate::schedule::{Length, Schedule, Warmup};
use crate::{Error, Result};

/// Settings of a training run and of the data made for it. All have defaults; the ranges are checked
/// before anything is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // Independent switches, as in every trainer.
#[non_exhaustive]
pub struct TrainConfig {
    /// How long to train. Default: 1 epoch. At least 1.
    pub length: Length,
    /// Rows of a micro-batch. Default: 8. At least 1. Memory grows with it.
    pub batch_size: usize,
    /// Micro-batches of a step; their gradients add up, weighted by tokens. Default: 1. At least 1.
    pub gradient_accumulation: usize,
    /// Tokens of a row at most. Default: 1024. At least 8, at most what the model has positions for.
    pub max_length: usize,
    /// Fills rows with several texts, which do not see each other. Default: false. Saves the padding.
    pub packing: bool,
    /// Of instructions, learn the completions only, not the prompts. Default: true. Texts are always
    /// learned whole.
    pub completion_only: bool,
    /// How conversations are written out. Default: none, by the tokenizer's own chat template.
    pub chat: Option<ChatTemplate>,
    /// The present time for chat templates that write one, as Llama 3.1's do with the date. Default: the second
    /// in which the configuration was made. A run that goes on takes the time that it began with
    /// ([`checkpoint::time`](crate::checkpoint::time)).
    pub time: Moment,
    /// Highest learning rate. Default: 2e-4. Over 0.
    pub learning_rate: f64,
    /// How it falls. Default: linear.
    pub schedule: Schedule,
    /// How it rises. Default: 0 steps. A ratio is in [0, 1); in either form fewer steps than the run has.
    pub warmup: Warmup,
    /// Where it falls to, as a share of the highest. Default: 0. In [0, 1]; without effect on a constant
    /// rate.
    pub min_lr_ratio: f64,
    /// Decoupled weight decay (Loshchilov and Hutter 2019). Default: 0. At least 0. Biases, norms and other
    /// vectors do not decay; with Hugging Face's Trainer, biases and norms do not.
    pub weight_decay: f64,
    /// AdamW's beta 1, of the gradients' mean. Default: 0.9. In [0, 1), also rounded to 32 bits.
    pub beta_1: f64,
    /// AdamW's beta 2, of the squares' mean. Default: 0.999. In [0, 1), also rounded to 32 bits.
    pub beta_2: f64,
    /// AdamW's epsilon, beside the root of the squares' mean. Default: 1e-8. Over 0, also rounded to 32 bits.
    pub epsilon: f64,
    /// Largest common norm of a step's gradients; none for no clipping. Default: 1. Over 0.
    pub max_grad_norm: Option<f64>,
    /// Seed of the rows' order and of dropout. Default: 42. The adapter's initial values come from
    /// `device.seed` before `attach`.
    pub seed: u64,
    /// Steps between evaluations on the held-out data. Default: none, at the end only. At least 1.
    pub eval_every: Option<usize>,
    /// Steps between checkpoints. Default: none, at the end only. At least 1.
    pub save_every: Option<usize>,
    /// Checkpoints that are kept; older ones are deleted. Default: 2. At least 1.
    pub keep_last: usize,
    /// Ends the run after that many evaluations in a row without a lower held-out loss. Default: none.
    /// At least 1; needs held-out data and `eval_every`.
    pub early_stopping_patience: Option<usize>,
    /// Gives back the model of the evaluation with the lowest held-out loss, not the last one. Default:
    /// false. Needs held-out data. Of a method that trains other parameters from a step on, as LT-SFT does, only
    /// evaluations after that step count.
    pub keep_best: bool,
    /// How long it takes until one more group of layers trains ([`LayerGroups`](peft_core::LayerGroups)): at first only what is
    /// nearest to the output does. Default: none, all layers train at once. At least 1; one epoch is Howard and
    /// Ruder's (2018, section 3.3). A step takes less time and memory while the lower layers do not train.
    pub gradual_unfreezing: Option<Length>,
    /// Computes activations again in the backward pass rather than keep them: less memory, about a third
    /// more time. Default: false. For models that can
    /// ([`CausalLm::has_checkpointing`](crate::CausalLm::has_checkpointing)), as Llama.
    pub gradient_checkpointing: bool,
    /// Reads every batch twice, and adds to the mean of both losses so many times how far both predictions are apart
    /// ([`consistency_loss`](peft_core::nn::consistency_loss), a mean over the targets). For what is random while training:
    /// AdaMix's experts (its authors' loss), dropout (R-Drop). Default: none. A number over 0. It takes twice the time, and the
    /// logits of a micro-batch at once. For models that give logits ([`CausalLm::logits`](crate::CausalLm::logits)), as
    /// Llama; not with `gradient_checkpointing`.
    pub consistency_weight: Option<f64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            length: Length::Epochs(1),
            batch_size: 8,
            gradient_accumulation: 1,
            max_length: 1024,
            packing: false,
            completion_only: true,
            chat: None,
            time: Moment::now(),
            learning_rate: 2e-4,
            schedule: Schedule::default(),
            warmup: Warmup::Steps(0),
            min_lr_ratio: 0.0,
            weight_decay: 0.0,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: Some(1.0),
            seed: 42,
            eval_every: None,
            save_every: None,
            keep_last: 2,
            early_stopping_patience: None,
            keep_best: false,
            gradual_unfreezing: None,
            gradient_checkpointing: false,
            consistency_weight: None,
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident($value:ident: $kind:ty) => $field:ident = $set:expr;)*) => {
        impl TrainConfig {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(mut self, $value: $kind) -> Self {
                    self.$field = $set;
                    self
                }
            )*
        }
    };
}

setters! {
    /// Sets how long to train.
    with_length(length: Length) => length = length;
    /// Sets the rows of a micro-batch.
    with_batch_size(rows: usize) => batch_size = rows;
    /// Sets the micro-batches of a step.
    with_gradient_accumulation(batches: usize) => gradient_accumulation = batches;
    /// Sets the tokens of a row.
    with_max_length(tokens: usize) => max_length = tokens;
    /// Sets whether rows hold several texts.
    with_packing(packing: bool) => packing = packing;
    /// Sets whether only completions are learned.
    with_completion_only(completion_only: bool) => completion_only = completion_only;
    /// Sets how conversations are written out, whatever the tokenizer's template. For a base model give it to the
    /// tokenizer ([`LlamaTokenizer::with_chat`](peft_models::LlamaTokenizer::with_chat)) instead: generation then
    /// ends where a turn ends, and an exported folder has the template.
    with_chat(template: ChatTemplate) => chat = Some(template);
    /// Sets the time that chat templates write.
    with_time(time: Moment) => time = time;
    /// Sets the highest learning rate.
    with_learning_rate(rate: f64) => learning_rate = rate;
    /// Sets how the learning rate falls.
    with_schedule(schedule: Schedule) => schedule = schedule;
    /// Sets how the learning rate rises.
    with_warmup(warmup: Warmup) => warmup = warmup;
    /// Sets where the learning rate falls to.
    with_min_lr_ratio(ratio: f64) => min_lr_ratio = ratio;
    /// Sets the weight decay.
    with_weight_decay(decay: f64) => weight_decay = decay;
    /// Sets the largest common norm of the gradients; `None` clips nothing.
    with_max_grad_norm(norm: Option<f64>) => max_grad_norm = norm;
    /// Sets the seed.
    with_seed(seed: u64) => seed = seed;
    /// Sets the steps between evaluations.
    with_eval_every(steps: usize) => eval_every = Some(steps);
    /// Sets the steps between checkpoints.
    with_save_every(steps: usize) => save_every = Some(steps);
    /// Sets how many checkpoints are kept.
    with_keep_last(checkpoints: usize) => keep_last = checkpoints;
    /// Sets the evaluations without improvement that end the run.
    with_early_stopping_patience(evaluations: usize) => early_stopping_patience = Some(evaluations);
    /// Sets whether the best model is given back.
    with_keep_best(keep_best: bool) => keep_best = keep_best;
    /// Sets how long it takes until one more group of layers trains.
    with_gradual_unfreezing(length: Length) => gradual_unfreezing = Some(length);
    /// Sets whether activations are computed again.
    with_gradient_checkpointing(on: bool) => gradient_checkpointing = on;
    /// Sets how much the distance of two predictions counts.
    with_consistency_weight(weight: f64) => consistency_weight = Some(weight);
}

impl TrainConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets AdamW's betas and epsilon.
    #[must_use]
    pub fn with_adam(mut self, beta_1: f64, beta_2: f64, epsilon: f64) -> Self {
        (self.beta_1, self.beta_2, self.epsilon) = (beta_1, beta_2, epsilon);
        self
    }

    /// The learning rate of the step after `step` others, of `steps` in all. As Hugging Face's schedules
    /// have it, the first step of a warmup is at 0.
    pub fn learning_rate_at(&self, step: usize, steps: usize) -> f64 {
        let warmup = self.warmup.steps(steps);
        if step < warmup {
            return self.learning_rate * step as f64 / warmup as f64;
        }
        let done = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        let done = done.min(1.0);
        let factor = match self.schedule {
            Schedule::Constant => return self.learning_rate,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        self.learning_rate * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * factor)
    }

    /// Checks every range.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for the first field that cannot work.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("batch_size", Some(self.batch_size)),
            ("gradient_accumulation", Some(self.gradient_accumulation)),
            ("eval_every", self.eval_every),
            ("save_every", self.save_every),
            ("keep_last", Some(self.keep_last)),
            ("early_stopping_patience", self.early_stopping_patience),
        ];
        for (field, count) in counts {
            let count = count.unwrap_or(1);
            check(field, count, count > 0, "at least 1")?;
        }
        let (Length::Steps(length) | Length::Epochs(length)) = self.length;
        check("length", self.length, length > 0, "at least 1")?;
        if let Some(Length::Steps(length) | Length::Epochs(length)) = self.gradual_unfreezing {
            check("gradual_unfreezing", length, length > 0, "at least 1")?;
        }
        let tokens = self.max_length;
        check("max_length", tokens, tokens >= 8, "at least 8")?;
        // The optimizer computes in 32 bits.
        let over = |value: f64| {
            let value = value as f32;
            value > 0.0 && value.is_finite()
        };
        let positive = "a number over 0, also in 32 bits";
        check(
            "learning_rate",
            self.learning_rate,
            over(self.learning_rate),
            positive,
        )?;
        check("epsilon", self.epsilon, over(self.epsilon), positive)?;
        let norm = self.max_grad_norm.unwrap_or(1.0);
        check("max_grad_norm", norm, over(norm), positive)?;
        let weight = self.consistency_weight.unwrap_or(1.0);
        check("consistency_weight", weight, over(weight), positive)?;
        let decay = self.weight_decay;
        let fits = decay >= 0.0 && (decay as f32).is_finite();
        check("weight_decay", decay, fits, "a number, at least 0")?;
        for (field, beta) in [("beta_1", self.beta_1), ("beta_2", self.beta_2)] {
            let fits = (0.0..1.0).contains(&(beta as f32));
            check(field, beta, fits, "in [0, 1), also in 32 bits")?;
        }
        let ratio = self.min_lr_ratio;
        let fits = (0.0..=1.0).contains(&ratio);
        check("min_lr_ratio", ratio, fits, "in [0, 1]")?;
        if let Warmup::Ratio(ratio) = self.warmup {
            let fits = (0.0..1.0).contains(&ratio);
            check("warmup", ratio, fits, "in [0, 1) as a ratio")?;
        }
        Ok(())
    }
}

fn check(field: &'static str, found: impl Debug, fits: bool, expected: &'static str) -> Result<()> {
    if fits {
        return Ok(());
    }
    Err(Error::Config {
        field,
        found: format!("{found:?}"),
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let config = TrainConfig::new;
        config().validate().unwrap();
        let refused = [
            (config().with_length(Length::Steps(0)), "length"),
            (
                config().with_gradual_unfreezing(Length::Epochs(0)),
                "gradual_unfreezing",
            ),
            (config().with_batch_size(0), "batch_size"),
            (config().with_max_length(7), "max_length"),
            (config().with_learning_rate(f64::NAN), "learning_rate"),
            (config().with_warmup(Warmup::Ratio(1.0)), "warmup"),
            (config().with_min_lr_ratio(1.5), "min_lr_ratio"),
            (config().with_weight_decay(-0.1), "weight_decay"),
            (config().with_adam(1.0, 0.999, 1e-8), "beta_1"),
            (config().with_adam(0.9, 0.999, 0.0), "epsilon"),
            (config().with_adam(0.9, 0.999, 1e-46), "epsilon"),
            (config().with_adam(0.9, 0.999_999_99, 1e-8), "beta_2"),
            (config().with_max_grad_norm(Some(0.0)), "max_grad_norm"),
            (config().with_consistency_weight(0.0), "consistency_weight"),
            (config().with_eval_every(0), "eval_every"),
            (config().with_keep_last(0), "keep_last"),
        ];
        for (config, field) in refused {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn a_configuration_comes_back_from_its_file() {
        let config = TrainConfig::new()
            .with_length(Length::Steps(30))
            .with_warmup(Warmup::Ratio(0.1))
            .with_schedule(Schedule::Cosine);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TrainConfig>(&text).unwrap(), config);
        let short = r#"{"length": {"steps": 30}, "warmup": {"ratio": 0.1}, "schedule": "cosine"}"#;
        let short: TrainConfig = serde_json::from_str(short).unwrap();
        assert_eq!(short.with_time(config.time), config);
        let error = serde_json::from_str::<TrainConfig>(r#"{"lerning_rate": 1}"#).unwrap_err();
        assert!(error.to_string().contains("lerning_rate"), "{error}");
    }

    /// Held against what transformers 5.23 computes for a rate of 1, 20 steps and a warmup of 4.
    #[test]
    fn rates_are_those_of_hugging_face() {
        let config = TrainConfig::new()
            .with_learning_rate(1.0)
            .with_warmup(Warmup::Steps(4));
        let rates = |config: &TrainConfig| -> Vec<f64> {
            let steps = [0, 1, 4, 5, 7, 12, 19];
            steps.map(|step| config.learning_rate_at(step, 20)).to_vec()
        };
        let near = |found: Vec<f64>, expected: [f64; 7]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
            }
        };
        let linear = rates(&config);
        near(linear, [0.0, 0.25, 1.0, 0.9375, 0.8125, 0.5, 0.0625]);
        let cosine = config.clone().with_schedule(Schedule::Cosine);
        let expected = [0.0, 0.25, 1.0, 0.990_393, 0.915_735, 0.5, 0.009_607];
        near(rates(&cosine), expected);
        let expected = [0.0, 0.25, 1.0, 0.991_353, 0.924_161, 0.55, 0.108_647];
        near(rates(&cosine.with_min_lr_ratio(0.1)), expected);
        let constant = config.with_schedule(Schedule::Constant);
        near(rates(&constant), [0.0, 0.25, 1.0, 1.0, 1.0, 1.0, 1.0]);
    }
}

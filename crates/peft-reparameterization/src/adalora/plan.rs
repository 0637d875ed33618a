//! AdaLoRA: a change in the form of a singular value decomposition, whose rank training decides.

use burn::nn::DropoutConfig;
use peft_core::method::{
    Common, LINEAR_AND_CONV2D, LayerKind, Layout, Method, MethodHooks, MethodInfo, Plan, States,
    config_to_json, refuse_unsupported, select, train_biases,
};
use peft_core::{Error, Result};
use serde_json::{Map, Value};

use crate::adalora::config::{ADALORA, AdaLoraConfig, UNSUPPORTED};
use crate::adalora::schedule::{AdaLoraSchedule, prune};
use crate::adalora::state::AdaLora;
use crate::lora::config::InitLora;

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

//! AdaLoRA: a change in the form of a singular value decomposition, whose rank training decides.

use burn::nn::DropoutConfig;
use peft_core::method::{
    LayerKind, Layout, Method, MethodConfig as _, MethodHooks, Plan, States, TargetLayer,
    adapt_each, layer_targets,
};
use peft_core::{Error, Result};
use serde_json::{Map, Value};

use crate::adalora::config::{ADALORA, AdaLoraConfig};
use crate::adalora::schedule::{AdaLoraSchedule, prune};
use crate::adalora::state::AdaLora;
use crate::lora::config::InitLora;

impl Method for AdaLoraConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if let Some(total) = self.total_step
            && self.tinit.saturating_add(self.tfinal) >= total
        {
            let expected = "more than tinit + tfinal";
            return Err(Error::config(ADALORA.title, "total_step", total, expected));
        }
        self.masks().map(|_| ())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        if plan.is_new() && self.lora_alpha <= 0.0 {
            let (field, alpha) = ("lora_alpha", self.lora_alpha);
            return Err(Error::config(ADALORA.title, field, alpha, "above 0"));
        }
        let kinds = &[LayerKind::Linear, LayerKind::Conv2d];
        let targets = layer_targets(self, layout, plan, kinds)?;
        let masks = self.masks()?;
        let names = || targets.iter().map(TargetLayer::name);
        let used = |key: &&str| names().any(|name| name == *key);
        let unused: Vec<_> = masks.keys().map(String::as_str).collect();
        let unused: Vec<_> = unused.into_iter().filter(|key| !used(key)).collect();
        if plan.is_new() && !unused.is_empty() {
            let field = "rank_pattern";
            return Err(Error::unused_pattern(ADALORA.title, field, unused, names()));
        }
        adapt_each(self, &targets, layout, plan, |target, plan| {
            let rank = match masks.get(target.name()) {
                Some(mask) => mask.iter().filter(|kept| **kept).count(),
                None => self.init_r,
            };
            let (rows, columns, like) = (target.d_in, target.d_out, target.like());
            let most = rows.min(columns);
            if plan.is_new() && rank > most {
                let (name, shape) = (target.name(), target.weight.shape());
                let expected = format!("`{name}` has shape {shape:?}, so at most {most}");
                return Err(Error::config(ADALORA.title, "init_r", rank, expected));
            }
            let alpha = if self.lora_alpha > 0.0 {
                self.lora_alpha
            } else {
                rank as f64
            };
            let random = self.init_lora_weights == InitLora::Default(false);
            let std = if random { 1.0 } else { 0.02 };
            let init = plan.init();
            Ok(AdaLora {
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
            })
        })
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

//! LoRA in AdapterHub's layout: which factors go where, and what they begin as.

use burn::module::Param;
use burn::nn::DropoutConfig;
use burn::tensor::Tensor;
use peft_core::Result;
use peft_core::method::{Init, Layout, MethodConfig as _, Plan, TargetLayer, TextGate};
use peft_core::ops::column_norms;

use crate::lora::adapterhub::{AdapterHubLora, Begin};
use crate::lora::adapterhub_state::{AdapterHubEnd, AdapterHubLoraLinear};
use crate::lora::config::LoraConfig;
use crate::lora::dora::Magnitude;
use crate::lora::state::LoraLinear;

impl Begin {
    /// A and B of a layer.
    pub(crate) fn factors(
        self,
        target: &TargetLayer<'_>,
        rank: usize,
        init: &mut Init,
    ) -> [Param<Tensor<2>>; 2] {
        let ([a, b], like) = ([[target.d_in, rank], [rank, target.d_out]], target.like());
        match self {
            Self::Lora => [
                init.kaiming_uniform(a, target.d_in, like),
                init.zeros(b, like),
            ],
            Self::Bert => [a, b].map(|shape| init.normal(shape, 0.02, like)),
            Self::Ia3 => [a, b].map(|shape| init.ones(shape, like)),
            Self::Vera => {
                let bound = |fan_in: usize| (6.0 / fan_in as f64).sqrt();
                let a = init.uniform(a, bound(target.d_in), like);
                [a, init.uniform(b, bound(rank), like)]
            }
        }
    }
}

impl AdapterHubEnd {
    /// Of a layer: `switches` say whether there is a gate, and a magnitude.
    pub(crate) fn of_layer(
        target: &TargetLayer<'_>,
        switches: [bool; 2],
        scale: f64,
        plan: &mut Plan,
    ) -> Self {
        let [gate, magnitude] = switches;
        let like = target.like();
        Self {
            gate: gate.then(|| TextGate::new(target.d_in, plan.init(), like)),
            magnitude: magnitude.then(|| Magnitude {
                // Of the base alone, whatever A and B begin as.
                value: if plan.is_new() {
                    Param::from_tensor(column_norms(target.weight.value::<2>()).detach())
                } else {
                    plan.init().zeros([target.d_out], like)
                },
            }),
            scale,
            has_bias: target.bias.is_some(),
        }
    }
}

impl LoraConfig {
    pub(crate) fn plan_adapterhub(
        &self,
        fields: &AdapterHubLora,
        layout: &Layout,
        plan: &mut Plan,
    ) -> Result<()> {
        let projections = fields.projections();
        let begin = fields.begin(self.info())?;
        for target in projections.select(layout, plan, (self.info(), "loras"))? {
            let mut seeded = fields.seeded(plan);
            let init = seeded.as_mut().unwrap_or_else(|| plan.init());
            let [lora_a, lora_b] = begin.factors(&target, self.r, init);
            let lora_a = self.factor_a(lora_a);
            let dropout = DropoutConfig::new(self.lora_dropout).init();
            let scale = self.lora_alpha / self.r as f64;
            if self.use_gating || self.use_dora {
                let switches = [self.use_gating, self.use_dora];
                let state = AdapterHubLoraLinear {
                    lora_a,
                    lora_b,
                    end: AdapterHubEnd::of_layer(&target, switches, scale, plan),
                    dropout,
                };
                plan.adapt_weight(target.weight, state);
                continue;
            }
            let state = LoraLinear {
                lora_a,
                lora_b,
                scale,
                dropout,
                removed: None,
                magnitude: None,
                added_bias: None,
            };
            plan.adapt_weight(target.weight, state);
        }
        Ok(())
    }
}

//! LoRA: what its configuration must be, and which factors go where.

use burn::nn::DropoutConfig;
use peft_core::{
    Common, Error, Family, Init, Layer, LayerKind, Layout, LayoutParam, Method, MethodInfo, Plan,
    Result, Selection, by_peft_type, config_from_json, config_to_json, pattern_value,
};
use serde_json::{Map, Value};

use crate::lora_config::{Bias, InitLora, LoraConfig};
use crate::lora_state::{LoraConv2d, LoraEmbedding, LoraLinear};

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

/// Named initial values that leave the base weight alone: whatever they were, a checkpoint's
/// factors say it all. PiSSA and its like change the base as well and are refused.
const FACTORS_ONLY: &[&str] = &["gaussian", "orthogonal", "eva"];

/// Fields of upstream's that change what a checkpoint means and are not built yet.
const UNSUPPORTED: &[&str] = &[
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "fan_in_fan_out",
];

impl LoraConfig {
    fn ranks(&self) -> Result<Vec<(String, usize)>> {
        let rank = |value: &Value| value.as_u64().filter(|r| *r > 0).map(|r| r as usize);
        patterns(
            &self.rank_pattern,
            "rank_pattern",
            "a whole number of at least 1",
            rank,
        )
    }

    fn alphas(&self) -> Result<Vec<(String, f64)>> {
        patterns(
            &self.alpha_pattern,
            "alpha_pattern",
            "a number",
            Value::as_f64,
        )
    }

    fn gaussian(&self) -> bool {
        matches!(&self.init_lora_weights, InitLora::Named(name) if name.eq_ignore_ascii_case("gaussian"))
    }

    /// Factors for one layer: values of both, by what lies where.
    fn draw<const D: usize>(
        &self,
        init: &mut Init,
        rank: usize,
        [a, b]: [[usize; D]; 2],
        fan_in: usize,
        param: &LayoutParam,
    ) -> [burn::module::Param<burn::tensor::Tensor<D>>; 2] {
        let like = (&param.device(), param.dtype());
        let a = if self.gaussian() {
            init.normal(a, 1.0 / rank as f64, like)
        } else {
            init.kaiming_uniform(a, fan_in, like)
        };
        let b = match self.init_lora_weights {
            InitLora::Default(false) => init.kaiming_uniform(b, rank, like),
            _ => init.zeros(b, like),
        };
        [a, b]
    }

    fn adapt(
        &self,
        layer: &Layer,
        param: &LayoutParam,
        (rank, scale): (usize, f64),
        plan: &mut Plan,
    ) -> Result<()> {
        let dropout = || DropoutConfig::new(self.lora_dropout).init();
        let shape = param.shape();
        let (rows, columns) = match layer.kind {
            LayerKind::Linear | LayerKind::Embedding => (shape[0], shape[1]),
            _ => (shape[0], shape[1..].iter().product()),
        };
        if plan.strict() && rank > rows.min(columns) {
            return Err(Error::config(
                LORA.title,
                "r",
                rank,
                format!(
                    "`{}` has shape {shape:?}, so at most {}",
                    layer.name,
                    rows.min(columns)
                ),
            ));
        }
        match layer.kind {
            LayerKind::Linear => {
                let shapes = [[rows, rank], [rank, columns]];
                let [lora_a, lora_b] = self.draw(plan.init(), rank, shapes, rows, param);
                plan.adapt_weight(
                    param,
                    LoraLinear {
                        lora_a,
                        lora_b,
                        scale,
                        dropout: dropout(),
                    },
                );
            }
            LayerKind::Embedding => {
                let like = (&param.device(), param.dtype());
                let init = plan.init();
                let lora_a = match self.init_lora_weights {
                    InitLora::Default(false) => init.normal([rows, rank], 1.0, like),
                    _ => init.zeros([rows, rank], like),
                };
                let lora_b = init.normal([rank, columns], 1.0, like);
                plan.adapt_weight(
                    param,
                    LoraEmbedding {
                        lora_a,
                        lora_b,
                        scale,
                    },
                );
            }
            LayerKind::Conv2d => {
                let shapes = [[rank, shape[1], shape[2], shape[3]], [rows, rank, 1, 1]];
                let [lora_a, lora_b] = self.draw(plan.init(), rank, shapes, columns, param);
                plan.adapt_weight(
                    param,
                    LoraConv2d {
                        lora_a,
                        lora_b,
                        scale,
                        dropout: dropout(),
                    },
                );
            }
            _ => unreachable!("checked by the caller"),
        }
        Ok(())
    }

    fn train_biases(&self, layout: &Layout, adapted: &[&Layer], plan: &mut Plan) {
        let is_bias = |param: &&LayoutParam| param.field() == "bias" && param.shape().len() == 1;
        for param in layout.params.iter().filter(is_bias) {
            let layer = layout.layer_of(param);
            let is_adapted = adapted.iter().any(|adapted| adapted.name == layer.name);
            if self.bias == Bias::All || (self.bias == Bias::LoraOnly && is_adapted) {
                // Upstream wraps an adapted layer, and its bias moves into the wrapper.
                let key = is_adapted.then(|| format!("{}.base_layer.bias", layer.name));
                plan.train_bias(param, key);
            }
        }
    }
}

fn patterns<T>(
    fields: &Map<String, Value>,
    name: &'static str,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>> {
    fields
        .iter()
        .map(|(pattern, value)| {
            let value = read(value).ok_or_else(|| {
                Error::config(
                    LORA.title,
                    name,
                    value,
                    format!("`{pattern}` needs {expected}"),
                )
            })?;
            Ok((pattern.clone(), value))
        })
        .collect()
}

impl Method for LoraConfig {
    fn info(&self) -> &'static MethodInfo {
        &LORA
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn validate(&self) -> Result<()> {
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(LORA.title, field, value, expected))
        };
        if self.r == 0 {
            return refuse("r", &self.r, "at least 1");
        }
        if !self.lora_alpha.is_finite() {
            return refuse("lora_alpha", &self.lora_alpha, "a finite number");
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return refuse("lora_dropout", &self.lora_dropout, "in [0, 1)");
        }
        if let InitLora::Named(name) = &self.init_lora_weights {
            let known = FACTORS_ONLY
                .iter()
                .any(|init| name.eq_ignore_ascii_case(init));
            if !known {
                return refuse("init_lora_weights", name, "true, false or \"gaussian\"");
            }
        }
        for field in UNSUPPORTED {
            let value = self.common.unknown.get(*field).unwrap_or(&Value::Null);
            let off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty(),
                _ => false,
            };
            if !off {
                return refuse(field, value, "leave it out: this is not supported yet");
            }
        }
        self.ranks()?;
        self.alphas().map(|_| ())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        if let InitLora::Named(name) = &self.init_lora_weights
            && plan.strict()
            && !self.gaussian()
        {
            let expected = "true, false or \"gaussian\": this one can be loaded, not drawn yet";
            return Err(Error::config(
                LORA.title,
                "init_lora_weights",
                name,
                expected,
            ));
        }
        let default = Selection::from(peft_core::ALL_LINEAR);
        let layers = self
            .targets
            .select(layout, LORA.title, &default, plan.strict())?;
        let (ranks, alphas) = (self.ranks()?, self.alphas()?);
        for layer in &layers {
            let weight = layout.param(layer, "weight").filter(|weight| {
                let rank = weight.shape().len();
                match layer.kind {
                    LayerKind::Linear | LayerKind::Embedding => rank == 2,
                    LayerKind::Conv2d => rank == 4,
                    _ => false,
                }
            });
            let Some(weight) = weight else {
                return Err(Error::UnsupportedLayer {
                    method: LORA.title,
                    layer: layer.name.clone(),
                    kind: layer.kind.to_string(),
                    supported: "Linear, Embedding and Conv2d",
                });
            };
            let rank = pattern_value(&ranks, &layer.name)?.unwrap_or(self.r);
            let alpha = pattern_value(&alphas, &layer.name)?.unwrap_or(self.lora_alpha);
            let divisor = if self.use_rslora {
                (rank as f64).sqrt()
            } else {
                rank as f64
            };
            self.adapt(layer, weight, (rank, alpha / divisor), plan)?;
        }
        self.train_biases(layout, &layers, plan);
        Ok(())
    }

    fn rank_of_change(&self) -> Option<usize> {
        let others = self.ranks().ok()?.into_iter().map(|(_, rank)| rank);
        others.chain([self.r]).max()
    }

    fn to_json(&self) -> Value {
        config_to_json(self, &LORA)
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

//! A LoRA adapter whose values are known: what combining, extracting and EVA end in.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::nn::DropoutConfig;
use burn::tensor::{DType, Tensor};
use peft_core::method::{Common, Layout, LayoutParam, Method, MethodConfig, MethodInfo, Plan};
use peft_core::{Error, Result, Selection};
use serde_json::Value;

use crate::combine_error::CombineError;
use crate::lora::config::{LORA, LoraConfig};
use crate::lora::conv::LoraConv2d;
use crate::lora::state::{LoraBias, LoraEmbedding, LoraLinear};
use crate::lora::values::on_device;
use crate::math::linalg;

/// Where factors came from, and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Linear,
    Embedding,
    /// The kernel's channels of a group, height and width; of a layer of one axis the second is 1.
    Conv2d([usize; 3]),
}

/// One adapter's change of one layer: `scale · left · right`, of the weight as `[in, out]`, `[vocabulary,
/// d]` or `[out, in · h · w]`.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    pub(crate) kind: Kind,
    pub(crate) left: Tensor<2>,
    pub(crate) right: Tensor<2>,
    pub(crate) scale: f64,
    /// Whether these are not the adapter's own factors alone.
    pub(crate) more: bool,
}

impl Factors {
    pub(crate) fn rank(&self) -> usize {
        self.right.dims()[0]
    }

    pub(crate) fn change(&self) -> Tensor<2> {
        (self.left.clone() * self.scale).matmul(self.right.clone())
    }
}

pub(crate) fn plain<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.without_autodiff().cast(DType::F32)
}

/// The best factors of a rank for a change, and the share of its norm that they miss.
pub(crate) fn factored(kind: Kind, change: Tensor<2>, rank: usize) -> Option<(Factors, f64)> {
    let whole = linalg::svd(change)?;
    let squares: Vec<f64> = whole
        .s
        .to_data()
        .iter::<f32>()
        .map(|value| f64::from(value).powi(2))
        .collect();
    let rank = rank.min(squares.len());
    let all: f64 = squares.iter().sum();
    let missed: f64 = squares[rank..].iter().sum();
    let error = if all > 0.0 {
        (missed / all).sqrt()
    } else {
        0.0
    };
    let svd = whole.truncated(rank);
    let root = svd.s.sqrt();
    let factors = Factors {
        kind,
        left: svd.u * root.clone().unsqueeze(),
        right: svd.vt * root.unsqueeze_dim(1),
        scale: 1.0,
        more: false,
    };
    Some((factors, error))
}

/// A LoRA adapter whose values are known: what combining and extracting end in.
#[derive(Clone, Debug)]
pub(crate) struct LoraFromFactors {
    pub(crate) config: LoraConfig,
    pub(crate) factors: BTreeMap<String, Factors>,
    /// β of `lora_bias`, by layer.
    pub(crate) added: BTreeMap<String, Tensor<1>>,
    /// Trained biases, by layer.
    pub(crate) biases: BTreeMap<String, Tensor<1>>,
}

impl LoraFromFactors {
    /// Of factors with scale 1.
    pub(crate) fn new(factors: BTreeMap<String, Factors>, layout: &Layout) -> Self {
        Self::with_config(Self::config(&factors, layout), factors)
    }

    /// Of factors that the configuration says all about.
    pub(crate) fn with_config(config: LoraConfig, factors: BTreeMap<String, Factors>) -> Self {
        Self {
            config,
            factors,
            added: BTreeMap::new(),
            biases: BTreeMap::new(),
        }
    }

    /// The configuration that says what the factors are: scale 1 everywhere.
    pub(crate) fn config(factors: &BTreeMap<String, Factors>, layout: &Layout) -> LoraConfig {
        let largest = factors.values().map(Factors::rank).max().unwrap_or(1);
        let mut config = LoraConfig::new(largest)
            .with_alpha(largest as f64)
            .with_targets(only(factors.keys(), layout));
        for (layer, factors) in factors {
            let rank = factors.rank();
            if rank != largest {
                let pattern = exactly(layer);
                config = config
                    .with_rank_pattern(&pattern, rank)
                    .with_alpha_pattern(&pattern, rank as f64);
            }
        }
        config
    }
}

/// A regular expression for one layer, and for none whose name ends so.
pub(crate) fn exactly(layer: &str) -> String {
    format!("^{}", layer.replace('.', r"\."))
}

/// The selection of these layers: by name, or by a regular expression where a name is the end of another
/// layer's.
pub(crate) fn only<'a>(layers: impl Iterator<Item = &'a String>, layout: &Layout) -> Selection {
    let names: Vec<String> = layers.cloned().collect();
    let ambiguous = names.iter().any(|name| {
        let end = format!(".{name}");
        let others = layout.layers.iter().map(|layer| &layer.name);
        others
            .clone()
            .any(|other| other.ends_with(&end) && !names.contains(other))
    });
    if ambiguous {
        let escaped: Vec<String> = names.iter().map(|name| name.replace('.', r"\.")).collect();
        Selection::Pattern(format!("({})", escaped.join("|")))
    } else {
        Selection::Names(names)
    }
}

fn param<const D: usize>(
    value: Tensor<2>,
    shape: [usize; D],
    like: &LayoutParam,
) -> Param<Tensor<D>> {
    let value = value.reshape(shape).cast(like.dtype());
    Param::from_tensor(on_device(value, &like.device()))
}

impl MethodConfig for LoraFromFactors {
    fn info(&self) -> &'static MethodInfo {
        &LORA
    }

    fn common(&self) -> &Common {
        &self.config.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.config.common
    }

    fn check_fields(&self) -> Result<()> {
        Ok(())
    }

    fn to_json(&self) -> Value {
        self.config.to_json()
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.config.clone())
    }
}

impl Method for LoraFromFactors {
    fn validate(&self) -> Result<()> {
        self.config.validate()
    }

    fn draws(&self) -> bool {
        false
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let dropout = || DropoutConfig::new(self.config.lora_dropout).init();
        for layer in &layout.layers {
            if let Some(factors) = self.factors.get(&layer.name) {
                let weight = layout
                    .param(layer, "weight")
                    .ok_or_else(|| missing(&layer.name))?;
                let rank = factors.rank();
                let (left, right) = (factors.left.clone(), factors.right.clone());
                let [rows, columns] = [left.dims()[0], right.dims()[1]];
                match factors.kind {
                    Kind::Linear => plan.adapt_weight(
                        weight,
                        LoraLinear {
                            lora_a: param(left, [rows, rank], weight),
                            lora_b: param(right, [rank, columns], weight),
                            scale: factors.scale,
                            dropout: dropout(),
                            removed: None,
                            magnitude: None,
                            added_bias: None,
                        },
                    ),
                    Kind::Embedding => plan.adapt_weight(
                        weight,
                        LoraEmbedding {
                            lora_a: param(left, [rows, rank], weight),
                            lora_b: param(right, [rank, columns], weight),
                            scale: factors.scale,
                            magnitude: None,
                            head: None,
                        },
                    ),
                    Kind::Conv2d([channels, height, width]) => plan.adapt_weight(
                        weight,
                        LoraConv2d {
                            lora_a: param(right, [rank, channels, height, width], weight),
                            lora_b: param(left, [rows, rank, 1, 1], weight),
                            scale: factors.scale,
                            dropout: dropout(),
                            magnitude: None,
                            axes: weight.shape().len() - 2,
                        },
                    ),
                }
                if self.config.lora_bias && factors.kind != Kind::Embedding {
                    let bias = bias_of(layout, &layer.name)?;
                    let width = bias.elements();
                    let value = match self.added.get(&layer.name) {
                        Some(value) => value.clone().reshape([1, width]),
                        None => Tensor::zeros(
                            [1, width],
                            (&bias.device().without_autodiff(), DType::F32),
                        ),
                    };
                    let lora_b = param(value, [width], bias);
                    plan.adapt_weight(bias, LoraBias { lora_b, scale: 1.0 });
                }
            }
            if let Some(value) = self.biases.get(&layer.name) {
                let bias = bias_of(layout, &layer.name)?;
                let adapted = self.factors.contains_key(&layer.name);
                let key = adapted.then(|| format!("{}.base_layer.bias", layer.name));
                let value = param(value.clone().unsqueeze(), [bias.elements()], bias).val();
                plan.train_bias(bias, key, Some(value.detach()));
            }
        }
        Ok(())
    }

    fn max_rank(&self) -> Option<usize> {
        self.config.max_rank()
    }
}

pub(crate) fn bias_of<'a>(layout: &'a Layout, layer: &str) -> Result<&'a LayoutParam> {
    let found = layout.layers.iter().find(|found| found.name == layer);
    let found = found.ok_or_else(|| missing(layer))?;
    layout.param(found, "bias").ok_or_else(|| {
        let reason = "the layer has no bias to add to, and the adapters give theirs one";
        CombineError::refuse(layer, reason)
    })
}

pub(crate) fn missing(layer: &str) -> Error {
    CombineError::refuse(layer, "this model has no such layer")
}

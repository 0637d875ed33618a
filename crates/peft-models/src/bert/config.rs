//! The configuration of a BERT model, as `config.json` has it.

use std::path::Path;

use burn::module::Initializer;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear};
use burn::tensor::activation::{gelu_approximate, relu};
use burn::tensor::{Device, Tensor};
use peft_core::nn::{AdaptedForward, ForwardContext, adapted_gelu};
use serde::Deserialize;

use crate::{LoadError, checkpoint};

/// More layers than any BERT has; a configuration beyond is damaged or hostile.
const MAX_LAYERS: usize = 1024;

/// Sizes and settings of a BERT model; field names are those of Hugging Face's `config.json`.
///
/// Deserialising alone does not check that the file is of a BERT, nor its values:
/// [`load`](Self::load) does.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct BertConfig {
    /// Number of token embeddings.
    pub vocab_size: usize,
    /// Width of the hidden states; a multiple of `num_attention_heads`.
    pub hidden_size: usize,
    /// Number of layers, 1 to 1024.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Width between the two matrices of the feed-forward part.
    pub intermediate_size: usize,
    /// The most positions a row can have, virtual tokens included.
    pub max_position_embeddings: usize,
    /// Number of segment embeddings; default 2. Only segment 0 is used.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// Activation of the feed-forward part; default exact GELU.
    #[serde(default)]
    pub hidden_act: HiddenAct,
    /// Dropout probability of embeddings and sublayer outputs, in [0, 1); default 0.1.
    #[serde(default = "tenth")]
    pub hidden_dropout_prob: f64,
    /// Dropout probability of attention weights, in [0, 1); default 0.1.
    #[serde(default = "tenth")]
    pub attention_probs_dropout_prob: f64,
    /// Dropout probability before a classification head, in [0, 1); default
    /// `hidden_dropout_prob`.
    #[serde(default)]
    pub classifier_dropout: Option<f64>,
    /// Standard deviation of fresh matrices; default 0.02.
    #[serde(default = "fiftieth")]
    pub initializer_range: f64,
    /// What is added to variances before the square root; default 1e-12.
    #[serde(default = "epsilon")]
    pub layer_norm_eps: f64,
    /// Id of the token that fills up rows; default 0.
    #[serde(default)]
    pub pad_token_id: Option<u32>,
}

fn two() -> usize {
    2
}

fn tenth() -> f64 {
    0.1
}

fn fiftieth() -> f64 {
    0.02
}

fn epsilon() -> f64 {
    1e-12
}

/// Activation of the feed-forward part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub enum HiddenAct {
    /// GELU with the error function: `gelu`.
    #[default]
    #[serde(rename = "gelu")]
    Gelu,
    /// GELU's approximation with tanh: `gelu_new`, `gelu_pytorch_tanh`.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    /// `relu`.
    #[serde(rename = "relu")]
    Relu,
}

impl HiddenAct {
    /// The layer's output for the activation of `x`.
    pub(super) fn then(self, layer: &Linear, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        match self {
            Self::Gelu => adapted_gelu(layer, x, context),
            Self::GeluTanh => layer.adapted_in(gelu_approximate(x), context),
            Self::Relu => layer.adapted_in(relu(x), context),
        }
    }
}

/// Fields that say which model this is, rather than how large.
#[derive(Deserialize)]
struct Kind {
    model_type: Option<String>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    hidden_act: Option<serde_json::Value>,
    position_embedding_type: Option<serde_json::Value>,
    #[serde(default)]
    is_decoder: bool,
}

impl BertConfig {
    /// Reads `config.json` in `dir`. Fields that are not known are ignored.
    ///
    /// # Errors
    ///
    /// [`LoadError::Io`] and [`LoadError::Json`] where there is no such file or a size is missing;
    /// [`LoadError::Config`] where a field has a value that is not supported.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = dir.as_ref().join("config.json");
        let kind: Kind = checkpoint::read_json(&path)?;
        let refuse = |field, found: String, expected: &str| LoadError::Config {
            path: path.clone(),
            field,
            found,
            expected: expected.to_string(),
        };
        match &kind.model_type {
            Some(name) if name == "bert" => {}
            Some(name) => return Err(refuse("model_type", format!("`{name}`"), "`bert`")),
            // Files of 2019 say it only here.
            None => match kind.architectures.iter().flatten().next() {
                Some(name) if name.starts_with("Bert") => {}
                _ => return Err(refuse("model_type", "missing".to_string(), "`bert`")),
            },
        }
        if let Some(value) = &kind.hidden_act
            && HiddenAct::deserialize(value).is_err()
        {
            let supported = "`gelu`, `gelu_new`, `gelu_pytorch_tanh` or `relu`";
            return Err(refuse("hidden_act", value.to_string(), supported));
        }
        if let Some(value) = &kind.position_embedding_type
            && value.as_str() != Some("absolute")
        {
            return Err(refuse(
                "position_embedding_type",
                value.to_string(),
                "`absolute`",
            ));
        }
        if kind.is_decoder {
            return Err(refuse(
                "is_decoder",
                "true".to_string(),
                "false: only encoders are built",
            ));
        }
        // The kind of model is settled before its sizes are asked for, so that another
        // architecture is not called a damaged BERT.
        let config: Self = checkpoint::read_json(&path)?;
        match config.fault() {
            None => Ok(config),
            Some((field, found, expected)) => Err(refuse(field, found, &expected)),
        }
    }

    /// The first size or probability that no model can have.
    fn fault(&self) -> Option<(&'static str, String, String)> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ];
        for (field, value) in sizes {
            if value == 0 {
                return Some((field, "0".to_string(), "at least 1".to_string()));
            }
        }
        if self.num_hidden_layers > MAX_LAYERS {
            let expected = format!("at most {MAX_LAYERS}");
            return Some((
                "num_hidden_layers",
                self.num_hidden_layers.to_string(),
                expected,
            ));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let expected = format!("a multiple of the {} heads", self.num_attention_heads);
            return Some(("hidden_size", self.hidden_size.to_string(), expected));
        }
        let probabilities = [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            (
                "attention_probs_dropout_prob",
                self.attention_probs_dropout_prob,
            ),
            ("classifier_dropout", self.classifier_dropout.unwrap_or(0.0)),
        ];
        for (field, value) in probabilities {
            if !(0.0..1.0).contains(&value) {
                return Some((field, value.to_string(), "in [0, 1)".to_string()));
            }
        }
        let scales = [
            ("initializer_range", self.initializer_range),
            ("layer_norm_eps", self.layer_norm_eps),
        ];
        for (field, value) in scales {
            if !(value.is_finite() && value >= 0.0) {
                return Some((
                    field,
                    value.to_string(),
                    "finite and not negative".to_string(),
                ));
            }
        }
        None
    }

    /// Dropout probability before a classification head.
    pub(super) fn head_dropout(&self) -> f64 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
    }

    fn matrices(&self) -> Initializer {
        Initializer::Normal {
            mean: 0.0,
            std: self.initializer_range,
        }
    }

    pub(super) fn linear(&self, d_in: usize, d_out: usize, device: &Device) -> Linear {
        Linear {
            weight: self.matrices().init([d_in, d_out], device),
            bias: Some(Initializer::Zeros.init([d_out], device)),
        }
    }

    pub(super) fn embedding(&self, rows: usize, device: &Device) -> Embedding {
        EmbeddingConfig::new(rows, self.hidden_size)
            .with_initializer(self.matrices())
            .init(device)
    }

    pub(super) fn norm(&self, device: &Device) -> LayerNorm {
        LayerNormConfig::new(self.hidden_size)
            .with_epsilon(self.layer_norm_eps)
            .init(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Param;

    #[test]
    fn activations_are_those_of_pytorch() {
        let device = peft_core::device::cpu_devices().remove(0).1;
        let x = Tensor::<3>::from_data([[[-2.0, -0.5, 0.0, 0.7, 3.0]]], &device);
        // The formulas of torch's gelu(x), gelu(x, approximate="tanh") and relu(x) in f64.
        let expected = [
            (
                "gelu",
                [-0.045_500_264, -0.154_268_77, 0.0, 0.530_625_4, 2.995_950_3],
            ),
            (
                "gelu_new",
                [-0.045_402_306, -0.154_286, 0.0, 0.530_570_1, 2.996_362_6],
            ),
            ("relu", [0.0, 0.0, 0.0, 0.7, 3.0]),
        ];
        for (name, expected) in expected {
            let act: HiddenAct = serde_json::from_str(&format!("\"{name}\"")).unwrap();
            // A layer that does nothing.
            let layer = BertConfig::tiny().linear(5, 5, &device);
            let layer = Linear {
                weight: Param::from_tensor(Tensor::eye(5, &device)),
                ..layer
            };
            let found = act
                .then(&layer, x.clone(), &ForwardContext::new())
                .into_data();
            let found: Vec<f32> = found.try_to_vec().unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{name}: {found} {expected}"
                );
            }
        }
    }
}

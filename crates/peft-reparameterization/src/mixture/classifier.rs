//! X-LoRA's classifier: from hidden states to a weight for each expert and layer.

use std::collections::HashMap;

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::activation::{relu, softmax};
use burn::tensor::{Device, Tensor};
use peft_core::nn::{AdaptedForward, RoutedPlace, Router};

use crate::mixture::top_k::largest;
use crate::mixture::xlora_config::XLoraConfig;

/// Linear layers with ReLU and dropout between them: `[batch, seq, d]` to `[batch, seq, layers or 1, experts]`.
#[derive(Module, Debug)]
pub struct XLoraClassifier {
    /// The linear layers.
    pub layers: Vec<Linear>,
    /// Behind each ReLU.
    pub dropout: Dropout,
    /// How many experts there are.
    pub experts: usize,
    /// Temperature of the softmax over the experts; none where there is no softmax.
    pub temperature: Option<f64>,
}

impl XLoraClassifier {
    /// Fresh values: torch's default for linear layers, uniform within 1 / sqrt(inputs).
    pub(crate) fn new(
        config: &XLoraConfig,
        width: usize,
        [layers, experts]: [usize; 2],
        device: &Device,
    ) -> Self {
        let outputs = if config.layerwise_scalings {
            layers * experts
        } else {
            experts
        };
        let inner = config.xlora_depth - 1;
        let widths = std::iter::once(width)
            .chain(std::iter::repeat_n(config.xlora_size, inner))
            .chain([outputs]);
        let widths: Vec<usize> = widths.collect();
        let linear = |pair: &[usize]| {
            use burn::module::Initializer::KaimingUniform;
            let gain = 1.0 / 3.0_f64.sqrt();
            LinearConfig::new(pair[0], pair[1])
                .with_initializer(KaimingUniform {
                    gain,
                    fan_out_only: false,
                })
                .init(device)
        };
        Self {
            layers: widths.windows(2).map(linear).collect(),
            dropout: DropoutConfig::new(config.xlora_dropout_p).init(),
            experts,
            temperature: config.enable_softmax.then_some(config.softmax_temperature),
        }
    }

    /// The weights for hidden states `[batch, seq, d]`: `[batch, seq, layers or 1, experts]`.
    pub fn forward(&self, hidden: Tensor<3>) -> Tensor<4> {
        let last = self.layers.len() - 1;
        let outputs = self
            .layers
            .iter()
            .enumerate()
            .fold(hidden, |x, (at, layer)| {
                let x = layer.adapted(x);
                if at == last {
                    x
                } else {
                    self.dropout.adapted(relu(x))
                }
            });
        let [batch, seq, outputs_of_token] = outputs.dims();
        let shape = [batch, seq, outputs_of_token / self.experts, self.experts];
        let weights = outputs.reshape(shape);
        match self.temperature {
            Some(temperature) => softmax(weights / temperature, 3),
            None => weights,
        }
    }
}

/// The classifier's weights for one batch, at each layer.
#[derive(Debug)]
pub(crate) struct Scalings {
    /// `[batch, seq, layers or 1, experts]`.
    pub(crate) weights: Tensor<4>,
    /// The layers' indices, by name.
    pub(crate) layers: HashMap<String, usize>,
    pub(crate) top_k: Option<usize>,
    /// Whether the kept ones are put through a softmax again.
    pub(crate) softmax: bool,
    /// Factor of all.
    pub(crate) factor: f64,
}

impl Router for Scalings {
    fn weights(&self, place: &RoutedPlace<'_>) -> Tensor<3> {
        let [batch, seq, layers, experts] = self.weights.dims();
        let at = match (layers, self.layers.get(place.name)) {
            (1, _) => 0,
            (_, Some(at)) => *at,
            (_, None) => panic!(
                "the classifier has no weights for `{}`: the experts were on other layers when it was made",
                place.name
            ),
        };
        let weights = self.weights.clone().narrow(2, at, 1);
        let weights = weights.reshape([batch, seq, experts]);
        let weights = match self.top_k {
            Some(k) if k < experts => {
                let dropped = largest(&weights, k).bool_not();
                weights.mask_fill(dropped, 0.0)
            }
            _ => weights,
        };
        let weights = if self.softmax {
            let zero = weights.clone().equal_elem(0.0);
            let kept = weights.mask_fill(zero.clone(), f32::NEG_INFINITY);
            softmax(kept, 2).mask_fill(zero, 0.0)
        } else {
            weights
        };
        weights * self.factor
    }

    fn rows(&self) -> Option<usize> {
        Some(self.weights.dims()[0])
    }
}

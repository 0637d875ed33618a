//! The stack of layers.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Bool, Device, Tensor};
use peft_core::SiteKind;
use peft_core::nn::AdaptedForward;

use super::attention::AttentionMask;
use super::{BertAttention, BertConfig, BertResidual, HiddenAct};

/// All layers.
#[derive(Module, Debug)]
pub struct BertEncoder {
    /// The layers, the one next to the embeddings first.
    pub layer: Vec<BertLayer>,
}

/// One layer: attention, then the feed-forward part, both post-norm.
#[derive(Module, Debug)]
pub struct BertLayer {
    /// Attention.
    pub attention: BertAttention,
    /// The first half of the feed-forward part.
    pub intermediate: BertIntermediate,
    /// The second half of the feed-forward part.
    pub output: BertResidual,
}

/// Projection to `intermediate_size` and activation.
#[derive(Module, Debug)]
pub struct BertIntermediate {
    /// Projection, `hidden_size` to `intermediate_size`.
    pub dense: Linear,
    #[module(skip)]
    activation: HiddenAct,
}

impl BertEncoder {
    pub(super) fn new(config: &BertConfig, device: &Device) -> Self {
        let layer = (0..config.num_hidden_layers)
            .map(|_| BertLayer::new(config, device))
            .collect();
        Self { layer }
    }

    /// How many positions the active prefixes take: the most that a layer has.
    pub fn prefix_tokens(&self) -> usize {
        let layers = self.layer.iter();
        let prefixes = layers.map(|layer| layer.attention.self_attention.prefix.virtual_tokens());
        prefixes.max().unwrap_or(0)
    }

    /// Hidden states after the last layer, for embeddings `[batch, seq, hidden_size]` and
    /// `padding` `[batch, seq]`, true where padded.
    pub fn forward(&self, embedded: Tensor<3>, padding: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let mask = padding.map(|padding| AttentionMask::new(padding, &embedded.device()));
        self.layer.iter().fold(embedded, |hidden, layer| {
            layer.forward(hidden, mask.as_ref())
        })
    }
}

impl BertLayer {
    fn new(config: &BertConfig, device: &Device) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            attention: BertAttention::new(config, device),
            intermediate: BertIntermediate {
                dense: config.linear(width, inner, device),
                activation: config.hidden_act,
            },
            output: BertResidual::new(config, inner, SiteKind::FeedForwardOutput, device),
        }
    }

    fn forward(&self, hidden: Tensor<3>, mask: Option<&AttentionMask>) -> Tensor<3> {
        let hidden = self.attention.forward(hidden, mask);
        let inner = self.intermediate.dense.adapted(hidden.clone());
        let outer = self.intermediate.activation.then(&self.output.dense, inner);
        self.output.after_dense(outer, hidden)
    }
}

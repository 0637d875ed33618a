//! The stack of layers.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{AdaptedForward, ForwardContext, HiddenState, SiteContext};
use peft_core::{HiddenSite, PromptSite};

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
    /// Where virtual tokens go in front of the stream before this layer.
    pub prompt: PromptSite,
    /// Attention.
    pub attention: BertAttention,
    /// The first half of the feed-forward part.
    pub intermediate: BertIntermediate,
    /// The second half of the feed-forward part.
    pub output: BertResidual,
    /// Where adapters act on the layer's output.
    pub site: HiddenSite,
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
    pub fn prefix_positions(&self) -> usize {
        let layers = self.layer.iter();
        let prefixes = layers.map(|layer| layer.attention.self_attention.prefix.positions());
        prefixes.max().unwrap_or(0)
    }

    /// Hidden states after the last layer, for embeddings `[batch, seq, hidden_size]`. Tokens that the context calls
    /// padding are attended by none. With them comes the context: prompts between layers make both longer.
    pub fn forward(
        &self,
        embedded: Tensor<3>,
        mut context: ForwardContext,
    ) -> (Tensor<3>, ForwardContext) {
        let device = embedded.device();
        let mask_of = |context: &ForwardContext| {
            let padding = context.padding();
            padding.map(|padding| AttentionMask::new(padding, &device))
        };
        let mut mask = mask_of(&context);
        let mut hidden = embedded;
        for layer in &self.layer {
            if layer.prompt.is_active() {
                (hidden, context) = layer.prompt.add_prompt(hidden, context);
                mask = mask_of(&context);
            }
            hidden = layer.forward(hidden, mask.as_ref(), &context);
        }
        (hidden, context)
    }
}

impl BertLayer {
    fn new(config: &BertConfig, device: &Device) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            prompt: PromptSite::of_stream(width),
            attention: BertAttention::new(config, device),
            intermediate: BertIntermediate {
                dense: config.linear(width, inner, device),
                activation: config.hidden_act,
            },
            output: BertResidual::new(config, inner, HiddenState::FeedForwardOutput, device),
            site: HiddenSite::new(HiddenState::BlockOutput, width),
        }
    }

    fn forward(
        &self,
        hidden: Tensor<3>,
        mask: Option<&AttentionMask>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let input = self.site.is_active().then(|| hidden.clone());
        let hidden = self.attention.forward(hidden, mask, context);
        let BertIntermediate { dense, activation } = &self.intermediate;
        let inner = dense.adapted_in(hidden.clone(), context);
        let outer = activation.then(&self.output.dense, inner, context);
        let hidden = self.output.after_dense(outer, hidden, context);
        match input {
            None => hidden,
            Some(input) => (self.site).forward(hidden, &SiteContext::of_block(context, input)),
        }
    }
}

//! P-tuning: virtual tokens before the embeddings, computed by a network while they are trained.

use burn::module::{Module, Param};
use burn::nn::DropoutConfig;
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{
    Adapter, CheckpointKey, Common, Layout, Method, MethodConfig as _, Plan, PromptAdapter,
    method_config,
};
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::prompt_encoder::{BiLstmLayer, MlpLayer, PromptEncoder};
use crate::vocabulary::only_site;

/// The virtual tokens, or what computes them.
#[derive(Module, Debug)]
pub enum EncodedPrompt {
    /// The virtual tokens' embeddings, `[virtual_tokens, d]`: what a file holds.
    Prompt(Param<Tensor<2>>),
    /// What computes them in training.
    Encoder(PromptEncoder),
}

impl Adapter for EncodedPrompt {
    fn tensors(&self) -> Vec<CheckpointKey> {
        match self {
            Self::Prompt(_) => vec![CheckpointKey::root("Prompt", "prompt_embeddings")],
            Self::Encoder(encoder) => encoder.tensors("Encoder"),
        }
    }

    fn for_checkpoint(&self) -> Self {
        Self::Prompt(Param::from_tensor(self.valid().prompt()))
    }
}

impl PromptAdapter for EncodedPrompt {
    fn virtual_tokens(&self) -> usize {
        let (Self::Prompt(table)
        | Self::Encoder(PromptEncoder {
            embeddings: table, ..
        })) = self;
        table.lazy_shape()[0]
    }

    fn prompt(&self) -> Tensor<2> {
        match self {
            Self::Prompt(embeddings) => embeddings.val(),
            Self::Encoder(encoder) => encoder.forward(),
        }
    }
}

/// The kind of network. Called `PromptEncoderReparameterizationType` in Hugging Face PEFT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum EncoderType {
    /// Three linear layers with ReLU between them.
    #[default]
    Mlp,
    /// A bidirectional LSTM, and behind it two linear layers with ReLU between them.
    Lstm,
}

/// P-tuning's configuration. Fields are called as in Hugging Face PEFT's `PromptEncoderConfig`.
#[method_config(
    P_TUNING, peft_type = "P_TUNING", title = "P-tuning", family = SoftPrompt, new(num_virtual_tokens),
    reference = "Liu et al. 2021, GPT Understands, Too, section 3"
)]
pub struct PromptEncoderConfig {
    /// How many virtual tokens. At least 1; each takes one of the model's positions. Without
    /// a default: 0 is refused.
    #[field(at_least = 1)]
    pub num_virtual_tokens: usize,
    /// The kind of network that computes the virtual tokens in training. A checkpoint holds what it computes, as
    /// upstream's: loaded, that is what further training changes. Default: an MLP.
    pub encoder_reparameterization_type: EncoderType,
    /// Width inside that network, of an LSTM in each direction, at least 1. Default: the embeddings'.
    #[field(at_least = 1)]
    pub encoder_hidden_size: Option<usize>,
    /// Layers of the LSTM, at least 1. Default: 2. Without effect on an MLP.
    #[field(default = 2, at_least = 1)]
    pub encoder_num_layers: usize,
    /// Probability, in [0, 1), with which numbers between the layers of the LSTM are dropped in training. Default: 0.
    /// Without effect on an MLP, and on an LSTM of one layer.
    #[field(probability)]
    pub encoder_dropout: f64,
    /// Width of the embeddings; recorded when attached.
    #[field(any)]
    pub token_dim: Option<usize>,
    /// Encoders or decoders with a prompt; recorded when attached, always 1.
    #[field(any)]
    pub num_transformer_submodules: Option<usize>,
    /// Fields that every method has.
    pub common: Common,
}

impl PromptEncoderConfig {
    /// Trains the tokens through a bidirectional LSTM of `layers` layers and two linear layers.
    #[must_use]
    pub fn with_lstm(self, layers: usize) -> Self {
        let config = self.with_encoder_reparameterization_type(EncoderType::Lstm);
        config.with_encoder_num_layers(layers)
    }

    /// A network for tokens of `width`, initialised as torch initialises embeddings, LSTMs and linear layers.
    fn encoder(
        &self,
        [width, hidden]: [usize; 2],
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> PromptEncoder {
        let init = plan.init();
        let embeddings = init.normal([self.num_virtual_tokens, width], 1.0, like);
        let both = 2 * hidden;
        let (lstm, widths) = match self.encoder_reparameterization_type {
            EncoderType::Mlp => (0, vec![width, hidden, hidden, width]),
            EncoderType::Lstm => (self.encoder_num_layers, vec![both, both, width]),
        };
        let lstm = (0..lstm).map(|layer| {
            let d_in = if layer == 0 { width } else { both };
            BiLstmLayer::new([d_in, hidden], init, like)
        });
        let lstm = lstm.collect();
        let mlp = widths.windows(2);
        let mlp = mlp.map(|pair| MlpLayer::new([pair[0], pair[1]], init, like));
        PromptEncoder {
            embeddings,
            lstm,
            dropout: DropoutConfig::new(self.encoder_dropout).init(),
            mlp: mlp.collect(),
        }
    }
}

fn refuse(field: &'static str, value: impl std::fmt::Debug, expected: &str) -> Error {
    Error::config(P_TUNING.title, field, value, expected)
}

impl Method for PromptEncoderConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        let submodules = self.num_transformer_submodules;
        if submodules.is_some_and(|count| count != 1) {
            let expected = "1: prompts of encoder and decoder together are not supported";
            return Err(refuse("num_transformer_submodules", submodules, expected));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let site = only_site(layout, &P_TUNING, self.num_virtual_tokens)?;
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        let width = site.width;
        let hidden = self.encoder_hidden_size.unwrap_or(width);
        // A file holds the virtual tokens, however they were trained.
        let state = if plan.is_new() {
            EncodedPrompt::Encoder(self.encoder([width, hidden], plan, like))
        } else {
            let shape = [self.num_virtual_tokens, width];
            EncodedPrompt::Prompt(plan.init().zeros(shape, like))
        };
        plan.add_prompt(site, state);
        plan.set_config_field("encoder_hidden_size", hidden);
        plan.set_config_field("token_dim", width);
        plan.set_config_field("num_transformer_submodules", 1);
        Ok(())
    }
}

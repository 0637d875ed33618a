//! P-tuning: virtual tokens before the embeddings, computed by a network while they are trained.

use burn::module::{Module, Param};
use burn::nn::DropoutConfig;
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{
    Adapter, CheckpointKey, Common, Family, Layout, Method, MethodInfo, Plan, PromptAdapter,
    by_peft_type, config_from_json, config_to_json,
};
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::prompt_encoder::{BiLstmLayer, MlpLayer, PromptEncoder};
use crate::prompt_tuning::only_site;

/// P-tuning's registration.
pub static P_TUNING: MethodInfo = MethodInfo {
    name: "p-tuning",
    peft_type: "P_TUNING",
    title: "P-tuning",
    family: Family::SoftPrompt,
    reference: "Liu et al. 2021, GPT Understands, Too, section 3",
    identity_at_init: false,
    mergeable: false,
    parse: config_from_json::<PromptEncoderConfig>,
    recognises: by_peft_type,
};

/// The virtual tokens, or what computes them.
#[derive(Module, Debug)]
pub enum EncodedPrompt {
    /// The virtual tokens' embeddings, `[virtual_tokens, d]`: what a file holds.
    Prompt(Param<Tensor<2>>),
    /// What computes them in training.
    Encoder(PromptEncoder),
}

impl Adapter for EncodedPrompt {
    const METHOD: &'static str = "P-tuning";

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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptEncoderConfig {
    /// How many virtual tokens. At least 1; each takes one of the model's positions.
    pub num_virtual_tokens: usize,
    /// The kind of network that computes the virtual tokens in training. A checkpoint holds what it computes, as
    /// upstream's: loaded, that is what further training changes. Default: an MLP.
    #[serde(default)]
    pub encoder_reparameterization_type: EncoderType,
    /// Width inside that network, of an LSTM in each direction, at least 1. Default: the embeddings'.
    #[serde(default)]
    pub encoder_hidden_size: Option<usize>,
    /// Layers of the LSTM, at least 1. Default: 2. Without effect on an MLP.
    #[serde(default = "default_layers")]
    pub encoder_num_layers: usize,
    /// Probability, in [0, 1), with which numbers between the layers of the LSTM are dropped in training. Default: 0.
    /// Without effect on an MLP, and on an LSTM of one layer.
    #[serde(default)]
    pub encoder_dropout: f64,
    /// Width of the embeddings; recorded when attached.
    #[serde(default)]
    pub token_dim: Option<usize>,
    /// Encoders or decoders with a prompt; recorded when attached, always 1.
    #[serde(default)]
    pub num_transformer_submodules: Option<usize>,
    /// Fields that every method has.
    #[serde(flatten)]
    pub common: Common,
}

fn default_layers() -> usize {
    2
}

impl PromptEncoderConfig {
    /// `num_virtual_tokens` of them, through an MLP as wide as the embeddings.
    pub fn new(num_virtual_tokens: usize) -> Self {
        Self {
            num_virtual_tokens,
            encoder_reparameterization_type: EncoderType::Mlp,
            encoder_hidden_size: None,
            encoder_num_layers: default_layers(),
            encoder_dropout: 0.0,
            token_dim: None,
            num_transformer_submodules: None,
            common: Common::default(),
        }
    }

    /// Trains the tokens through a bidirectional LSTM of `layers` layers and two linear layers.
    #[must_use]
    pub fn with_lstm(mut self, layers: usize) -> Self {
        self.encoder_reparameterization_type = EncoderType::Lstm;
        self.encoder_num_layers = layers;
        self
    }

    /// Sets the width inside the network.
    #[must_use]
    pub fn with_encoder_hidden_size(mut self, hidden_size: usize) -> Self {
        self.encoder_hidden_size = Some(hidden_size);
        self
    }

    /// Sets the dropout between the layers of the LSTM.
    #[must_use]
    pub fn with_encoder_dropout(mut self, probability: f64) -> Self {
        self.encoder_dropout = probability;
        self
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
        PromptEncoder {
            embeddings,
            lstm,
            dropout: DropoutConfig::new(self.encoder_dropout).init(),
            mlp: mlp
                .map(|widths| MlpLayer::new([widths[0], widths[1]], init, like))
                .collect(),
        }
    }
}

fn refuse(field: &'static str, value: impl std::fmt::Debug, expected: &str) -> Error {
    Error::config(P_TUNING.title, field, value, expected)
}

impl Method for PromptEncoderConfig {
    fn info(&self) -> &'static MethodInfo {
        &P_TUNING
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn validate(&self) -> Result<()> {
        let numbers = [
            ("num_virtual_tokens", self.num_virtual_tokens),
            ("encoder_hidden_size", self.encoder_hidden_size.unwrap_or(1)),
            ("encoder_num_layers", self.encoder_num_layers),
        ];
        for (field, value) in numbers {
            if value == 0 {
                return Err(refuse(field, value, "at least 1"));
            }
        }
        if !(0.0..1.0).contains(&self.encoder_dropout) {
            return Err(refuse("encoder_dropout", self.encoder_dropout, "in [0, 1)"));
        }
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

    fn to_json(&self) -> Value {
        config_to_json(self, &P_TUNING)
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

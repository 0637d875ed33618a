//! Late prompt tuning: a prompt in front of the stream at a layer in the middle, which may depend on the text.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Bool, Tensor, TensorData};
use peft_core::method::{
    Adapter, CheckpointKey, Common, Layout, Method, Plan, PromptAdapter, SiteKind, method_config,
};
use peft_core::nn::{AdaptedForward, ForwardContext};
use peft_core::ops::linear;
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::prompt_encoder::MlpLayer;

/// The prompt, or what makes it.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one in a model, and a `Box` is no module of Burn's"
)]
pub enum LatePrompt {
    /// Virtual tokens, the same for all texts, `[num_prompt_tokens, d]`.
    Prompt(Param<Tensor<2>>),
    /// What makes them of a text's hidden states.
    Generator(PromptGenerator),
}

/// Two linear layers with ReLU between them that make a text's prompt of its hidden states (Liu et al. 2022, section 4.2).
#[derive(Module, Debug)]
pub struct PromptGenerator {
    /// d to `proj_down_size`.
    pub down: MlpLayer,
    /// `proj_down_size` to `num_prompt_tokens · d`, or to d behind pooling.
    pub up: MlpLayer,
    /// On the prompt.
    pub dropout: Dropout,
    /// How many virtual tokens.
    pub tokens: usize,
    /// What it looks at.
    #[module(skip)]
    pub kind: PromptGeneratorType,
    /// Which token it looks at, where it looks at one.
    #[module(skip)]
    pub token: NpgToken,
}

/// What makes the virtual tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum PromptGeneratorType {
    /// Nothing: they are trained themselves, and are the same for all texts.
    #[serde(rename = "NONE")]
    Fixed,
    /// The paper's naive generator, which looks at the hidden state of one token.
    #[default]
    Npg,
    /// Its pooling generator with means, which looks at as many stretches of the text as there are virtual tokens.
    Appg,
    /// The same with maxima.
    Mppg,
}

/// Which token the naive generator looks at. Padding and other virtual tokens are passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NpgToken {
    /// The text's first, as the paper has it for encoders.
    #[default]
    First,
    /// The text's last, as the paper has it for decoders, whose first token has seen nothing else.
    Last,
}

impl PromptGenerator {
    /// Prompts `[rows, num_prompt_tokens, d]` for hidden states `[rows, seq, d]`.
    pub fn forward(&self, hidden: &Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        let through = |layer: &MlpLayer, input: Tensor<3>| {
            linear(input, layer.weight.val(), Some(layer.bias.val()), None)
        };
        let [rows, _, width] = hidden.dims();
        let own = Own::of(hidden, context);
        let seen = match self.kind {
            PromptGeneratorType::Fixed | PromptGeneratorType::Npg => {
                let token = own.one(self.token, hidden).matmul(hidden.clone());
                through(&self.down, token)
            }
            PromptGeneratorType::Appg => {
                let inside = through(&self.down, hidden.clone());
                own.means(self.tokens, &inside).matmul(inside)
            }
            PromptGeneratorType::Mppg => {
                own.maxima(self.tokens, &through(&self.down, hidden.clone()))
            }
        };
        let prompts = through(&self.up, relu(seen));
        self.dropout
            .adapted(prompts.reshape([rows, self.tokens, width]))
    }
}

/// The places of a batch's own tokens, row by row; one row where all have the same.
struct Own {
    places: Vec<Vec<usize>>,
    rows: usize,
    length: usize,
}

impl Own {
    /// Those that are neither padding nor virtual tokens; all of a row that has no such.
    fn of(hidden: &Tensor<3>, context: &ForwardContext) -> Self {
        let [rows, length, _] = hidden.dims();
        let first = context.virtual_tokens().min(length);
        let own = |padding: &[bool]| -> Vec<usize> {
            let text = (first..length).filter(|at| !padding.get(*at).copied().unwrap_or(false));
            let text: Vec<usize> = text.collect();
            if text.is_empty() {
                return (0..length).collect();
            }
            text
        };
        let places = match context.padding() {
            None => vec![own(&[])],
            Some(padding) => {
                let padding: Vec<bool> = padding.into_data().iter::<bool>().collect();
                padding.chunks(length).map(own).collect()
            }
        };
        Self {
            places,
            rows,
            length,
        }
    }

    /// The stretches of `count` stretches of a row's tokens, as torch's adaptive pooling divides them.
    fn stretches(places: &[usize], count: usize) -> impl Iterator<Item = &[usize]> {
        let length = places.len();
        (0..count).map(move |at| &places[at * length / count..((at + 1) * length).div_ceil(count)])
    }

    /// Weights `[rows, windows, seq]` of the windows of each row: 1 over their number for the places of a window.
    fn weights<'a, I: Iterator<Item = &'a [usize]>>(
        &'a self,
        count: usize,
        windows: impl Fn(&'a [usize]) -> I,
        like: &Tensor<3>,
    ) -> Tensor<3> {
        let mut values = vec![0.0_f32; self.places.len() * count * self.length];
        for (row, places) in self.places.iter().enumerate() {
            for (at, window) in windows(places).enumerate() {
                for place in window {
                    let value = &mut values[(row * count + at) * self.length + place];
                    *value = 1.0 / window.len() as f32;
                }
            }
        }
        let data = TensorData::new(values, [self.places.len(), count, self.length]);
        let weights = Tensor::<3>::from_data(data, (&like.device(), like.dtype()));
        weights.expand([self.rows, count, self.length])
    }

    fn one(&self, token: NpgToken, like: &Tensor<3>) -> Tensor<3> {
        let only = |places: &'_ [usize]| match token {
            NpgToken::First => 0..1,
            NpgToken::Last => places.len() - 1..places.len(),
        };
        self.weights(1, |places| std::iter::once(&places[only(places)]), like)
    }

    fn means(&self, count: usize, like: &Tensor<3>) -> Tensor<3> {
        self.weights(count, |places| Self::stretches(places, count), like)
    }

    /// Maxima of stretches of `hidden` `[rows, seq, d]`: `[rows, count, d]`.
    fn maxima(&self, count: usize, hidden: &Tensor<3>) -> Tensor<3> {
        let [rows, length, width] = hidden.dims();
        let weights = self.means(count, hidden);
        let maxima = (0..count).map(|at| {
            let others: Tensor<3, Bool> = weights.clone().narrow(1, at, 1).equal_elem(0.0);
            let others = others.swap_dims(1, 2).expand([rows, length, width]);
            hidden.clone().mask_fill(others, f32::MIN).max_dim(1)
        });
        Tensor::cat(maxima.collect(), 1)
    }
}

impl Adapter for LatePrompt {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let Self::Generator(_) = self else {
            return vec![CheckpointKey::layer("Prompt", "prompt_embedding.weight")];
        };
        let of = |field: &str, stored: &str| {
            let key = |name: &str| {
                let stored = format!("prompt_generator.{stored}.{name}");
                CheckpointKey::layer(&format!("Generator.{field}.{name}"), &stored)
            };
            [key("weight").transposed(), key("bias")]
        };
        [of("down", "proj_down"), of("up", "proj_up")].concat()
    }
}

impl PromptAdapter for LatePrompt {
    fn virtual_tokens(&self) -> usize {
        match self {
            Self::Prompt(prompt) => prompt.lazy_shape()[0],
            Self::Generator(generator) => generator.tokens,
        }
    }

    /// The virtual tokens; of a generator those for a hidden state of zeros.
    fn prompt(&self) -> Tensor<2> {
        match self {
            Self::Prompt(prompt) => prompt.val(),
            Self::Generator(generator) => {
                let weight = generator.down.weight.val();
                let like = (&weight.device(), weight.dtype());
                let zeros = Tensor::zeros([1, 1, weight.dims()[0]], like);
                let prompts = generator.forward(&zeros, &ForwardContext::new());
                prompts.squeeze_dim(0)
            }
        }
    }

    fn prompts_before(&self, hidden: &Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        match self {
            Self::Prompt(prompt) => prompt.val().unsqueeze(),
            Self::Generator(generator) => generator.forward(hidden, context),
        }
    }
}

/// Late prompt tuning's configuration. Fields are called as in the authors' program.
#[method_config(
    LATE_PROMPT_TUNING, peft_type = "LATE_PROMPT_TUNING", title = "Late prompt tuning", family = SoftPrompt, new(),
    reference = "Liu et al. 2022, Late Prompt Tuning: A Late Prompt Could Be Better Than Many Prompts, section 4"
)]
pub struct LatePromptConfig {
    /// How many virtual tokens, at least 1. They take none of the model's positions. Default: 5.
    #[field(default = 5, at_least = 1)]
    pub num_prompt_tokens: usize,
    /// Behind how many layers they are put in, fewer than there are; 0: in front of the first. Default: half of the
    /// layers; recorded when attached.
    #[field(any)]
    pub add_prompt_layer: Option<usize>,
    /// What makes the virtual tokens. Default: the naive generator. Where a model is trained to continue texts it must be
    /// [`PromptGeneratorType::Fixed`]: a prompt that was made of a text tells what comes.
    pub generator_type: PromptGeneratorType,
    /// Width inside the generator, at least 1. Default: 128.
    #[field(default = 128, at_least = 1)]
    pub proj_down_size: usize,
    /// Which token the naive generator looks at. Default: the first. For a decoder, `last`.
    pub npg_token: NpgToken,
    /// Probability, in [0, 1), with which numbers of a generated prompt are dropped in training. Default: 0.
    #[field(probability)]
    pub dropout: f64,
    /// Fields that every method has.
    pub common: Common,
}

impl Method for LatePromptConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let sites: Vec<_> = layout.stream_sites().collect();
        if sites.is_empty() {
            return Err(layout.no_site(LATE_PROMPT_TUNING.title, SiteKind::Stream));
        }
        let layer = self.add_prompt_layer.unwrap_or(sites.len() / 2);
        let Some(site) = sites.get(layer) else {
            return Err(Error::config(
                LATE_PROMPT_TUNING.title,
                "add_prompt_layer",
                layer,
                format!("below {}, the number of the model's layers", sites.len()),
            ));
        };
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        let (tokens, width) = (self.num_prompt_tokens, site.width);
        let init = plan.init();
        let state = match self.generator_type {
            PromptGeneratorType::Fixed => {
                LatePrompt::Prompt(init.normal([tokens, width], 1.0, like))
            }
            kind => {
                let inside = self.proj_down_size;
                let out = if kind == PromptGeneratorType::Npg {
                    // A file may declare any number.
                    tokens.saturating_mul(width)
                } else {
                    width
                };
                LatePrompt::Generator(PromptGenerator {
                    down: MlpLayer::new([width, inside], init, like),
                    up: MlpLayer::new([inside, out], init, like),
                    dropout: DropoutConfig::new(self.dropout).init(),
                    tokens,
                    kind,
                    token: self.npg_token,
                })
            }
        };
        plan.add_prompt(*site, state);
        plan.set_config_field("add_prompt_layer", layer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_those_of_adaptive_pooling() {
        let places: Vec<usize> = (10..17).collect();
        let found: Vec<_> = Own::stretches(&places, 3).map(<[usize]>::to_vec).collect();
        // torch: AdaptiveAvgPool1d(3) on 7 numbers.
        assert_eq!(
            found,
            [vec![10, 11, 12], vec![12, 13, 14], vec![14, 15, 16]]
        );
        // Fewer tokens than stretches.
        let found: Vec<_> = Own::stretches(&places[..2], 3)
            .map(<[usize]>::to_vec)
            .collect();
        assert_eq!(found, [vec![10], vec![10, 11], vec![11]]);
    }
}

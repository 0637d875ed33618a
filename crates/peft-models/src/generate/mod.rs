//! Text generation with a Llama.

mod config;
mod decode;
mod error;
mod file;
mod generator;
mod processors;
mod routing;
mod stream;

use crate::{Llama, LlamaTokenizer};

pub use config::GenerateConfig;
pub use error::GenerateError;
pub use generator::Generator;
pub use routing::TextRouting;

/// What ended a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoppedBy {
    /// A token that ends texts ([`GenerateConfig::eos_token_id`]).
    Eos,
    /// One of [`GenerateConfig::stop_strings`].
    StopString,
    /// [`GenerateConfig::max_new_tokens`].
    MaxNewTokens,
    /// The end of the model's context: prompt, virtual tokens and generated tokens fill its
    /// `max_position_embeddings`.
    Context,
}

/// What [`Llama::generate`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generated {
    /// The text behind the prompt, without special tokens and without the stop string.
    pub text: String,
    /// All tokens behind the prompt, with the one that ended the generation.
    pub ids: Vec<u32>,
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why there is no more.
    pub stopped_by: StoppedBy,
}

impl Llama {
    /// Goes on with a text; `on_text` gets each piece of it as soon as it is known.
    ///
    /// Pieces are whole characters, and never a part of a stop string; together they are
    /// [`Generated::text`]. The tokenizer's special tokens are put in front of the prompt, unless
    /// the prompt begins with the text of its BOS token, as rendered chats of many models do. (To
    /// have none, encode the prompt and call [`generate_from`](Self::generate_from).)
    ///
    /// Active adapters take part; those that are routed need [`routed_by`](Self::routed_by). Texts are generated one at a time: where rows have adapters of their own
    /// ([`set_adapter_per_row`](peft_core::PeftModule::set_adapter_per_row)), there must be one row. A model on an autodiff device generates by `self.valid()`: no
    /// graph is built, and there is no dropout.
    ///
    /// ```no_run
    /// use burn::tensor::Device;
    /// use peft_models::{GenerateConfig, Llama, LlamaTokenizer, Message};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let tokenizer = LlamaTokenizer::load("SmolLM2-135M-Instruct")?;
    /// let model = Llama::load("SmolLM2-135M-Instruct", &Device::default())?;
    /// let prompt = tokenizer.chat(&[Message::user("Name three rivers.")])?;
    /// let config = GenerateConfig::default()
    ///     .with_max_new_tokens(200)
    ///     .with_temperature(0.6);
    /// let reply = model.generate(&tokenizer, &prompt, &config, |text| print!("{text}"))?;
    /// println!("\n{} tokens, {:?}", reply.ids.len(), reply.stopped_by);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`GenerateError::Setting`] for a configuration that is out of range, or without the
    /// [`task`](GenerateConfig::task) that an active adapter needs; [`GenerateError::Rows`]; an error about the
    /// prompt if it is empty (and the model has no BOS token), longer than the context, or has
    /// tokens beyond the model's vocabulary; [`GenerateError::NotFinite`] if the model computes NaN
    /// or infinity; [`GenerateError::Tokenizer`] if the tokenizer fails.
    pub fn generate(
        &self,
        tokenizer: &LlamaTokenizer,
        prompt: &str,
        config: &GenerateConfig,
        on_text: impl FnMut(&str),
    ) -> Result<Generated, GenerateError> {
        Generator::of(self).generate(tokenizer, prompt, config, on_text)
    }

    /// As [`generate`](Self::generate), from the token ids of a prompt; none are added to them.
    ///
    /// # Errors
    ///
    /// As [`generate`](Self::generate).
    pub fn generate_from(
        &self,
        tokenizer: &LlamaTokenizer,
        prompt: &[u32],
        config: &GenerateConfig,
        on_text: impl FnMut(&str),
    ) -> Result<Generated, GenerateError> {
        Generator::of(self).generate_from(tokenizer, prompt, config, on_text)
    }

    /// The token ids that follow those of a prompt, with the one that ends the text if there is
    /// one. There is no tokenizer, so [`GenerateConfig::stop_strings`] must be empty.
    ///
    /// # Errors
    ///
    /// As [`generate`](Self::generate), and [`GenerateError::Setting`] if there are stop strings.
    pub fn generate_ids(
        &self,
        prompt: &[u32],
        config: &GenerateConfig,
    ) -> Result<Vec<u32>, GenerateError> {
        Generator::of(self).generate_ids(prompt, config)
    }

    /// Generates with adapters that are weighed anew for each token, as X-LoRA and Arrow do: the model's composition is
    /// [`Composition::Routed`](peft_core::Composition::Routed), and `routing` gives the weights.
    pub fn routed_by<'a>(&'a self, routing: &'a TextRouting<'a>) -> Generator<'a> {
        Generator::of(self).with_routing(routing)
    }
}

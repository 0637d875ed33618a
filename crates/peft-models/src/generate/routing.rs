//! Weights of adapters for a text that is generated.

use std::fmt;

use burn::tensor::{Int, Tensor};
use peft_core::nn::{ForwardContext, Routing};
use peft_core::{Composition, PeftModule as _};

use super::GenerateError;
use crate::Llama;
use crate::llama::KvCache;

/// Weights of adapters for a text that is generated, piece by piece: first the prompt, then each token.
///
/// A token's weights do not change when others follow it, so keys and values of former tokens stay in the cache.
pub enum TextRouting<'a> {
    /// The same routing for each piece: one that computes weights from what goes into a layer
    /// ([`Routing::computed`]), as Arrow's, or one set of weights for all tokens.
    Same(Routing),
    /// Two passes over each piece, as X-LoRA has them: the first, with this routing, gives the model's last hidden states,
    /// and of them the function makes the routing of the second. Each pass has a cache of its own.
    ///
    /// ```
    /// # use burn::tensor::Tensor;
    /// # use peft_core::nn::Routing;
    /// # use peft_models::{Generated, GenerateConfig, GenerateError, Llama, LlamaTokenizer, TextRouting};
    /// # struct XLora { model: Llama }
    /// # impl XLora {
    /// #     fn first_pass(&self) -> Routing { unimplemented!() }
    /// #     fn routing(&self, hidden: Tensor<3>) -> Routing { unimplemented!() }
    /// # }
    /// # fn f(xlora: &XLora, tokenizer: &LlamaTokenizer) -> Result<Generated, GenerateError> {
    /// # let config = GenerateConfig::default();
    /// let routing = TextRouting::ByHidden {
    ///     first: xlora.first_pass(),
    ///     then: Box::new(|hidden| xlora.routing(hidden)),
    /// };
    /// xlora.model.routed_by(&routing).generate(tokenizer, "Is it legal?", &config, |text| print!("{text}"))
    /// # }
    /// ```
    ByHidden {
        /// The routing of the first pass.
        first: Routing,
        /// The routing of the second pass, for hidden states `[1, tokens of the piece, hidden_size]`; virtual tokens in front
        /// of the prompt are among those of the first piece.
        then: Box<dyn Fn(Tensor<3>) -> Routing + 'a>,
    },
}

impl fmt::Debug for TextRouting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same(routing) => f.debug_tuple("Same").field(routing).finish(),
            Self::ByHidden { first, .. } => {
                let mut all = f.debug_struct("ByHidden");
                all.field("first", first).finish_non_exhaustive()
            }
        }
    }
}

/// Reads a text piece by piece.
pub(super) struct Reader<'a> {
    model: &'a Llama,
    routing: Option<&'a TextRouting<'a>>,
    /// The adapters that are routed.
    adapters: Vec<String>,
    cache: KvCache,
    /// Of the first of two passes.
    first_cache: KvCache,
}

impl<'a> Reader<'a> {
    pub(super) fn new(model: &'a Llama, routing: Option<&'a TextRouting<'a>>) -> Self {
        let adapters = match model.composition() {
            Composition::Routed(names) => names,
            _ => Vec::new(),
        };
        Self {
            model,
            routing,
            adapters,
            cache: model.cache(),
            first_cache: model.cache(),
        }
    }

    /// Logits `[1, vocab_size]` of what follows the ids, which follow those of former calls.
    pub(super) fn next_logits(
        &mut self,
        ids: Tensor<2, Int>,
        context: ForwardContext,
    ) -> Result<Tensor<2>, GenerateError> {
        let mut tokens = ids.dims()[1];
        if self.cache.is_empty() {
            tokens += self.model.model.prompt.virtual_tokens();
        }
        let adapters = &self.adapters;
        let checked = |routing: Routing, tokens| match routing.check(adapters, 1, tokens) {
            Ok(()) => Ok(routing),
            Err(reason) => Err(GenerateError::routing(reason)),
        };
        let context = match self.routing {
            None => context,
            Some(TextRouting::Same(routing)) => {
                context.with_routing(checked(routing.clone(), tokens)?)
            }
            Some(TextRouting::ByHidden { first, then }) => {
                let first = context
                    .clone()
                    .with_routing(checked(first.clone(), tokens)?);
                let hidden = (self.model).next_hidden_in(ids.clone(), first, &mut self.first_cache);
                let tokens = hidden.dims()[1];
                context.with_routing(checked(then(hidden), tokens)?)
            }
        };
        Ok(self.model.next_logits_in(ids, context, &mut self.cache))
    }
}

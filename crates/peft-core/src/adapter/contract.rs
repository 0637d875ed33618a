//! The adapter contract: what a method's state must be able to do at the place where it acts.

use burn::module::Module;
use burn::tensor::module::{conv2d, embedding};
use burn::tensor::{Int, Tensor};
use peft_ops::LowRank;

use crate::adapter::attention_context::{AttentionContext, PrefixContext};
use crate::adapter::base::{BaseConv2d, BaseEmbedding, BaseLinear};
use crate::adapter::checkpoint_key::CheckpointKey;
use crate::adapter::forward_context::ForwardContext;
use crate::adapter::site_context::{HiddenParts, SiteContext};

/// State that a method adds to one place of a model.
///
/// A plain `#[derive(Module)]` struct: its parameters take part in optimizers, devices, records
/// and `valid`/`train` like the model's own. What it does is said by the trait of the place where
/// it acts: [`WeightAdapter`], [`HiddenAdapter`], [`PromptAdapter`], [`KeyValueAdapter`] or [`AttentionAdapter`].
pub trait Adapter: Module + Sync + 'static {
    /// How the state's parameters are called and laid out in a checkpoint.
    ///
    /// Every parameter must be listed, or [`Error::UnlistedTensor`](crate::Error::UnlistedTensor) refuses to attach
    /// the adapter: its checkpoint would silently lack a tensor.
    fn tensors(&self) -> Vec<CheckpointKey>;

    /// The state as a file holds it, where that is not what is trained: what a prompt's encoder computes, in the
    /// encoder's place. Without autodiff, as nothing is trained in a file. Default: the state itself.
    #[must_use]
    fn for_checkpoint(&self) -> Self {
        self.clone()
    }

    /// The state once it has a file's values, where it holds something that is computed of them. Parameters that no file
    /// holds are then as they were planned. Default: the state itself.
    #[must_use]
    fn after_load(self) -> Self {
        self
    }
}

/// An adapter of a parameter: W becomes W'(theta), of the same shape.
///
/// The two ways to use it must agree (a test of the conformance suite):
///
/// - *composed*: [`compose`](Self::compose) gives W'. Works in any Burn module, unchanged.
/// - *activation side*: [`linear`](Self::linear) and its siblings compute the layer's output
///   without ever forming W'. The defaults compose; overriding them is what makes a method cheap.
///
/// Several adapters on one parameter nest: each sees what lies below it as `base`, the model's own
/// weight being innermost.
pub trait WeightAdapter: Adapter {
    /// The effective weight, from the weight below. Shape and dtype are kept.
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D>;

    /// The change as factors, where the adapter of a linear layer is that and nothing else:
    /// W' = W + s·A B for whatever W is, and nothing happens to the input. `None` otherwise.
    ///
    /// A method that gives them needs no [`linear`](Self::linear) of its own, and is fused with the
    /// layer and with other such adapters on it.
    fn low_rank(&self) -> Option<LowRank> {
        None
    }

    /// `x W' + b`, for `input` of shape `[tokens, in]`: returns `[tokens, out]`. The layer's bias
    /// is `base`'s.
    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        match self.low_rank() {
            Some(low_rank) => base.forward_with(input, low_rank),
            None => peft_ops::linear(input, self.compose(base.weight()), base.bias(), None),
        }
    }

    /// Rows of the table for `ids` of shape `[batch, seq]`: returns `[batch, seq, d]`.
    fn embedding(&self, ids: Tensor<2, Int>, base: &dyn BaseEmbedding) -> Tensor<3> {
        embedding(self.compose(base.weight()), ids)
    }

    /// The convolution of `input` `[batch, in, h, w]`, without the bias. A layer of one axis comes as one of two, the second
    /// of one element: its kernel as `[out, in / groups, k, 1]`, here and in [`compose`](Self::compose).
    fn conv2d(&self, input: Tensor<4>, base: &dyn BaseConv2d) -> Tensor<4> {
        conv2d(input, self.compose(base.weight()), None, base.options())
    }

    /// Whether [`compose`](Self::compose) says all that the adapter does. Where it adds to a layer's output
    /// what no weight can, it cannot be merged, and the layer must be called through
    /// [`AdaptedForward`](crate::nn::AdaptedForward). Default: yes.
    fn is_mergeable(&self) -> bool {
        true
    }

    /// Whether [`linear`](Self::linear) and its siblings read the matrix below ([`BaseLinear::weight`]) and not only call
    /// what is below. An adapter that [is no change of a weight](Self::is_mergeable) cannot lie below one that does, and
    /// is refused there when both are activated. A convolution's kernel counts as read by every adapter that is a change
    /// of it, whatever this says. Default: yes, unless the change is [`low_rank`](Self::low_rank).
    fn needs_weight(&self) -> bool {
        self.low_rank().is_none()
    }

    /// Whether a layer may keep W' from one forward pass to the next while nothing is trained, so that it composes once
    /// ([`kept_weights`](crate::kept_weights)). Say no where the activation side costs little beside the layer's own
    /// product, as scaling does. What is [`low_rank`](Self::low_rank) is kept only if its factors have more than half as
    /// many elements as the weight, or if it [computes them](Self::computes_factors). Default: yes.
    fn keeps_weight(&self) -> bool {
        true
    }

    /// Whether each call of [`low_rank`](Self::low_rank) computes the factors, in a time that counts beside the layer's own
    /// product: an inverse, a choice among vectors. Default: no, as factors are parameters.
    fn computes_factors(&self) -> bool {
        false
    }

    /// How many tasks it has parameters of, where the context has to say which task each row is of
    /// ([`ForwardContext::tasks`]): ids are below it. With one task the context need not say. Default: `None`, as all rows
    /// are alike.
    fn num_tasks(&self) -> Option<usize> {
        None
    }

    /// Whether a head that is this table ([`TiedHead`](crate::TiedHead)) changes with it: new tokens do, a
    /// change of the embeddings does not unless it is asked for, as upstream has it. Default: no.
    fn affects_tied_head(&self) -> bool {
        false
    }

    /// The change of a head that is this table and moves with it, as factors `[d, r]` and `[r, vocabulary]`: the
    /// head is the table, transposed. Without them the head's matrix is composed. Default: none.
    fn tied_low_rank(&self) -> Option<LowRank> {
        None
    }
}

/// An adapter of a hidden state at a [`Site`](crate::nn::Site) of the forward pass.
pub trait HiddenAdapter: Adapter {
    /// The new hidden state, `[batch, seq, d]` as `hidden` is.
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3>;

    /// [`forward`](Self::forward) in its parts, for methods that mix what several adapters add. Default: the adapter
    /// sees the hidden state and keeps it, and adds the difference to what `forward` gives.
    fn parts(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> HiddenParts {
        let output = self.forward(hidden.clone(), context);
        HiddenParts {
            seen: hidden.clone(),
            added: output - hidden.clone(),
            kept: hidden,
        }
    }

    /// The hidden state that [`forward`](Self::forward) makes `hidden` of, where it can be inverted. A model with a
    /// site behind its embeddings undoes there, in front of its head, what the site did. Default: `hidden` itself, as
    /// there is nothing to undo.
    fn inverse(&self, hidden: Tensor<3>, _context: &SiteContext<'_>) -> Tensor<3> {
        hidden
    }

    /// Whether the output takes the place of the sublayer's end: the model adds no residual to it, and does not
    /// normalise it. Of several adapters the last one decides. Only for sites with
    /// [`optional_end`](crate::method::LayoutSite::optional_end). Default: no.
    fn is_end(&self) -> bool {
        false
    }
}

/// An adapter of a model's input, or of the stream between its blocks: virtual tokens in front.
pub trait PromptAdapter: Adapter {
    /// How many virtual tokens.
    fn virtual_tokens(&self) -> usize;

    /// The virtual tokens' embeddings, `[virtual_tokens, d]`.
    fn prompt(&self) -> Tensor<2>;

    /// Whether the virtual tokens stand behind the text's first token. Where they have no positions and each token sees all,
    /// attention does not tell that from the front, where they are computed; but then it is the text's first token that
    /// stands for the text ([`ForwardContext::first_token`]). Default: no.
    fn is_behind_first_token(&self) -> bool {
        false
    }

    /// How many tasks it has prompts of, where the context has to say which task each row is of
    /// ([`ForwardContext::tasks`]): ids are below it. With one task the context need not say. Default: `None`, as all rows
    /// are alike.
    fn num_tasks(&self) -> Option<usize> {
        None
    }

    /// Those of a batch of `rows` rows, `[rows, virtual_tokens, d]`, or `[1, virtual_tokens, d]` where all rows have the
    /// same. Default: [`prompt`](Self::prompt).
    fn prompts(&self, rows: usize, context: &ForwardContext) -> Tensor<3> {
        let _ = (rows, context);
        self.prompt().unsqueeze()
    }

    /// Those in front of `hidden` `[rows, seq, d]`, for prompts that depend on what they are put in front of; shapes are
    /// those of [`prompts`](Self::prompts). The context says which of `hidden`'s tokens are padding. Default: `prompts`.
    fn prompts_before(&self, hidden: &Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        self.prompts(hidden.dims()[0], context)
    }
}

/// An adapter of an attention layer's state: keys and values of tokens that are not there.
pub trait KeyValueAdapter: Adapter {
    /// How many virtual tokens.
    fn virtual_tokens(&self) -> usize;

    /// How many of the model's positions they take: those of the text begin behind them. Default: one for each, as in
    /// Hugging Face's models.
    fn positions(&self) -> usize {
        self.virtual_tokens()
    }

    /// Keys and values, each `[virtual_tokens, kv_heads · head_dim]`. Keys are as they are attended to: where
    /// the model rotates by position, they are taken for rotated. While nothing is trained the site calls it once and
    /// keeps what it gives ([`kept_weights`](crate::kept_weights)).
    fn key_value(&self) -> (Tensor<2>, Tensor<2>);

    /// Keys and values of `rows` rows of the batch, each `[rows, virtual_tokens, kv_heads · head_dim]`, from those of
    /// [`key_value`](Self::key_value). Default: all rows have the same.
    fn key_value_of(
        &self,
        (key, value): (Tensor<2>, Tensor<2>),
        rows: usize,
        _context: &PrefixContext<'_>,
    ) -> (Tensor<3>, Tensor<3>) {
        let spread = |one: Tensor<2>| {
            let [tokens, width] = one.dims();
            one.unsqueeze::<3>().expand([rows, tokens, width])
        };
        (spread(key), spread(value))
    }
}

/// An adapter of what an attention layer's heads give, before the output projection: what cannot be put among the keys
/// and values, because it has a softmax of its own.
pub trait AttentionAdapter: Adapter {
    /// The new output of the heads, side by side, `[batch, seq, heads · head_dim]` as `attended` is.
    fn forward(&self, attended: Tensor<3>, context: &AttentionContext<'_>) -> Tensor<3>;
}

//! What adapters inside an attention layer see besides what they change.

use burn::tensor::{Int, Tensor};

use crate::adapter::forward_context::ForwardContext;

/// What a [`KeyValueAdapter`](crate::method::KeyValueAdapter) may use besides its own parameters.
#[non_exhaustive]
pub struct PrefixContext<'a> {
    /// What flows with the whole forward pass.
    pub forward: &'a ForwardContext,
    input: &'a dyn Fn() -> Tensor<3>,
    index: Option<Tensor<1, Int>>,
}

impl<'a> PrefixContext<'a> {
    /// `input` gives what went into the projections of the attention layer, `[batch, seq, d]`. It is called only if an
    /// adapter asks for it.
    pub fn new(forward: &'a ForwardContext, input: &'a dyn Fn() -> Tensor<3>) -> Self {
        Self {
            forward,
            input,
            index: None,
        }
    }

    /// What went into the projections of the attention layer, `[rows, seq, d]`: behind the norm in front of them, where
    /// there is one. With a cache it is that of the first part of the text, as prefixes are put in front of that.
    pub fn input(&self) -> Tensor<3> {
        let input = (self.input)();
        match &self.index {
            Some(index) => input.select(0, index.clone()),
            None => input,
        }
    }

    /// The context of some rows of the batch, whose part of the forward pass's context is `forward`.
    pub(crate) fn of_rows<'b>(
        &'b self,
        forward: &'b ForwardContext,
        index: Tensor<1, Int>,
    ) -> PrefixContext<'b> {
        PrefixContext {
            forward,
            input: self.input,
            index: Some(index),
        }
    }
}

/// Keys and values `[1 or batch, tokens, kv_heads · head_dim]` of tokens `[1, tokens, d]`.
pub(crate) type Project<'a> = dyn Fn(Tensor<3>) -> (Tensor<3>, Tensor<3>) + 'a;

/// What an [`AttentionAdapter`](crate::method::AttentionAdapter) may use besides the output of the heads.
#[non_exhaustive]
pub struct AttentionContext<'a> {
    /// What flows with the whole forward pass.
    pub forward: &'a ForwardContext,
    /// The queries as keys are compared with them, `[batch, seq, heads · head_dim]`: rotated, where the model rotates by
    /// position.
    pub query: Tensor<3>,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; fewer than `heads` with grouped queries.
    pub kv_heads: usize,
    project: &'a Project<'a>,
    index: Option<Tensor<1, Int>>,
}

impl<'a> AttentionContext<'a> {
    /// `heads` are those of the queries, and those of keys and values. `project` gives what the layer's projections make
    /// of tokens `[1, tokens, d]`: keys and values, `[1 or batch, tokens, kv_heads · head_dim]`, without positions. Use
    /// [`adapted_tokens`](crate::nn::adapted_tokens) for it.
    pub fn new(
        forward: &'a ForwardContext,
        query: Tensor<3>,
        [heads, kv_heads]: [usize; 2],
        project: &'a dyn Fn(Tensor<3>) -> (Tensor<3>, Tensor<3>),
    ) -> Self {
        Self {
            forward,
            query,
            heads,
            kv_heads,
            project,
            index: None,
        }
    }

    /// Keys and values of tokens `[tokens, d]` of the adapter's own, by the projections of the attention layer and the
    /// adapters on those: each `[batch, tokens, kv_heads · head_dim]`. They have no position: where the model rotates by
    /// position, these are not rotated.
    pub fn key_value(&self, tokens: Tensor<2>) -> (Tensor<3>, Tensor<3>) {
        let (key, value) = (self.project)(tokens.unsqueeze());
        (self.of_batch(key), self.of_batch(value))
    }

    fn of_batch(&self, projected: Tensor<3>) -> Tensor<3> {
        let [rows, tokens, width] = projected.dims();
        match &self.index {
            Some(index) if rows > 1 => projected.select(0, index.clone()),
            _ => projected.expand([self.query.dims()[0], tokens, width]),
        }
    }

    /// The context of some rows of the batch, whose part of the forward pass's context is `forward`.
    pub(crate) fn of_rows<'b>(
        &'b self,
        forward: &'b ForwardContext,
        index: Tensor<1, Int>,
    ) -> AttentionContext<'b> {
        AttentionContext {
            forward,
            query: self.query.clone().select(0, index.clone()),
            heads: self.heads,
            kv_heads: self.kv_heads,
            project: self.project,
            index: Some(index),
        }
    }
}

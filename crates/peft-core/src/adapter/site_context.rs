//! What an adapter of a hidden state sees besides the state itself.

use burn::tensor::{Int, Tensor};

use crate::adapter::forward_context::ForwardContext;

/// What a [`HiddenAdapter`](crate::method::HiddenAdapter) does to a hidden state, in parts: its output is `kept + added`.
/// Each is `[batch, seq, d]`.
#[derive(Clone, Debug)]
pub struct HiddenParts {
    /// What the adapter reads: the hidden state, or that state after the model's residual and norm.
    pub seen: Tensor<3>,
    /// What of the state the output holds unchanged: the adapter's own residual.
    pub kept: Tensor<3>,
    /// What the adapter adds to it.
    pub added: Tensor<3>,
}

/// Runs an attached adapter of the same site on a hidden state.
pub(crate) type RunSibling<'a> = dyn Fn(&str, Tensor<3>) -> Option<HiddenParts> + 'a;

/// What a [`HiddenAdapter`](crate::method::HiddenAdapter) may use besides the hidden state itself.
#[non_exhaustive]
pub struct SiteContext<'a> {
    /// What flows with the whole forward pass.
    pub forward: &'a ForwardContext,
    /// What went into the sublayer or block whose output the site sees, `[batch, seq, d]`.
    pub sublayer_input: Option<Tensor<3>>,
    /// The residual stream that the model adds after the site, `[batch, seq, d]`.
    pub residual: Option<Tensor<3>>,
    /// The normalisation that the model applies after adding the residual (post-norm models).
    pub norm: Option<&'a dyn Fn(Tensor<3>) -> Tensor<3>>,
    siblings: Option<&'a RunSibling<'a>>,
}

impl<'a> SiteContext<'a> {
    /// Nothing but the forward pass's context is known.
    pub fn new(forward: &'a ForwardContext) -> Self {
        Self {
            forward,
            sublayer_input: None,
            residual: None,
            norm: None,
            siblings: None,
        }
    }

    /// The site after a sublayer of a post-norm block, `norm(hidden + residual)`, whose residual
    /// is also the sublayer's input.
    pub fn post_norm(
        forward: &'a ForwardContext,
        residual: Tensor<3>,
        norm: &'a dyn Fn(Tensor<3>) -> Tensor<3>,
    ) -> Self {
        Self {
            sublayer_input: Some(residual.clone()),
            residual: Some(residual),
            norm: Some(norm),
            ..Self::new(forward)
        }
    }

    /// The site after a sublayer of a pre-norm block, `hidden + residual`.
    pub fn pre_norm(
        forward: &'a ForwardContext,
        sublayer_input: Tensor<3>,
        residual: Tensor<3>,
    ) -> Self {
        Self {
            sublayer_input: Some(sublayer_input),
            residual: Some(residual),
            ..Self::new(forward)
        }
    }

    /// The site after a whole block.
    pub fn of_block(forward: &'a ForwardContext, input: Tensor<3>) -> Self {
        Self {
            sublayer_input: Some(input),
            ..Self::new(forward)
        }
    }

    /// What another adapter of this site does to `hidden` `[batch, seq, d]`, active or not: what a method that fuses
    /// adapters works on. `None` if there is no adapter of that name here. Gradients reach `hidden` and not the other
    /// adapter, which is frozen.
    pub fn parts_of(&self, adapter: &str, hidden: Tensor<3>) -> Option<HiddenParts> {
        self.siblings?(adapter, hidden)
    }

    /// The same with the site's adapters.
    pub(crate) fn with_siblings<'b>(&'b self, siblings: &'b RunSibling<'b>) -> SiteContext<'b> {
        SiteContext {
            forward: self.forward,
            sublayer_input: self.sublayer_input.clone(),
            residual: self.residual.clone(),
            norm: self.norm,
            siblings: Some(siblings),
        }
    }

    /// The context of some tokens of each row, whose part of the forward pass's context is `forward`.
    pub(crate) fn of_tokens<'b>(
        &'b self,
        forward: &'b ForwardContext,
        from: usize,
        count: usize,
    ) -> SiteContext<'b> {
        let narrow = |tensor: &Tensor<3>| tensor.clone().narrow(1, from, count);
        SiteContext {
            forward,
            sublayer_input: self.sublayer_input.as_ref().map(narrow),
            residual: self.residual.as_ref().map(narrow),
            norm: self.norm,
            siblings: self.siblings,
        }
    }

    /// The context of some rows of the batch, whose part of the forward pass's context is `forward`.
    pub(crate) fn of_rows<'b>(
        &'b self,
        forward: &'b ForwardContext,
        index: &Tensor<1, Int>,
    ) -> SiteContext<'b> {
        let select = |tensor: &Tensor<3>| tensor.clone().select(0, index.clone());
        SiteContext {
            forward,
            sublayer_input: self.sublayer_input.as_ref().map(select),
            residual: self.residual.as_ref().map(select),
            norm: self.norm,
            siblings: self.siblings,
        }
    }
}

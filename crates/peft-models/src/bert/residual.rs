//! The end of both parts of a layer: projection, residual, normalisation.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, LayerNorm, Linear};
use burn::tensor::{Device, Tensor};
use peft_core::HiddenSite;
use peft_core::nn::{
    AdaptedForward, ForwardContext, HiddenState, SiteContext, adapted_layer_norm, dropout_rate,
};

use super::BertConfig;

/// Upstream's `BertSelfOutput` and `BertOutput`, which differ in the width of what comes in.
#[derive(Module, Debug)]
pub struct BertResidual {
    /// Projection to `hidden_size`.
    pub dense: Linear,
    /// Normalisation of the sum with the residual.
    pub layer_norm: LayerNorm,
    /// Dropout of the projected states.
    pub dropout: Dropout,
    /// Where adapters act on the projected states, before the residual is added.
    pub site: HiddenSite,
    /// Added to the variance.
    epsilon: f64,
}

impl BertResidual {
    pub(super) fn new(
        config: &BertConfig,
        d_in: usize,
        state: HiddenState,
        device: &Device,
    ) -> Self {
        Self {
            dense: config.linear(d_in, config.hidden_size, device),
            layer_norm: config.norm(device),
            dropout: DropoutConfig::new(config.hidden_dropout_prob).init(),
            site: HiddenSite::new(state, config.hidden_size).with_optional_end(),
            epsilon: config.layer_norm_eps,
        }
    }

    /// `norm(site(dropout(dense(x))) + residual)`: `x` is `[batch, seq, in]`, `residual` and the
    /// result are `[batch, seq, hidden_size]`.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        residual: Tensor<3>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        self.after_dense(self.dense.adapted_in(x, context), residual, context)
    }

    /// The same from the output of `dense` on.
    pub(super) fn after_dense(
        &self,
        hidden: Tensor<3>,
        residual: Tensor<3>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        if !self.site.is_active() {
            let dropout = dropout_rate(&self.dropout);
            return self.norm((hidden, dropout), Some(residual), context);
        }
        let norm = |hidden| self.norm((hidden, 0.0), None, context);
        let around = SiteContext::post_norm(context, residual.clone(), &norm);
        let hidden = self.site.forward(self.dropout.adapted(hidden), &around);
        if self.site.is_end() {
            return hidden;
        }
        self.norm((hidden, 0.0), Some(residual), context)
    }

    /// `layer_norm(dropout(hidden) + residual)`.
    fn norm(
        &self,
        hidden: (Tensor<3>, f64),
        residual: Option<Tensor<3>>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        adapted_layer_norm(&self.layer_norm, self.epsilon, hidden, residual, context)
    }
}

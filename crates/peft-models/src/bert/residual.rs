//! The end of both parts of a layer: projection, residual, normalisation.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, LayerNorm, Linear};
use burn::tensor::{Device, Tensor};
use peft_core::method::SiteContext;
use peft_core::nn::{AdaptedForward, dropout_rate};
use peft_core::ops::layer_norm;
use peft_core::{Site, SiteKind};

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
    pub site: Site,
    /// Added to the variance.
    epsilon: f64,
}

impl BertResidual {
    pub(super) fn new(config: &BertConfig, d_in: usize, kind: SiteKind, device: &Device) -> Self {
        Self {
            dense: config.linear(d_in, config.hidden_size, device),
            layer_norm: config.norm(device),
            dropout: DropoutConfig::new(config.hidden_dropout_prob).init(),
            site: Site::new(kind, config.hidden_size),
            epsilon: config.layer_norm_eps,
        }
    }

    /// `norm(site(dropout(dense(x))) + residual)`: `x` is `[batch, seq, in]`, `residual` and the
    /// result are `[batch, seq, hidden_size]`.
    pub(super) fn forward(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        self.after_dense(self.dense.adapted(x), residual)
    }

    /// The same from the output of `dense` on.
    pub(super) fn after_dense(&self, hidden: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        if !self.site.is_active() {
            return self.norm(hidden, Some(residual), dropout_rate(&self.dropout));
        }
        let norm = |hidden| self.norm(hidden, None, 0.0);
        let around = SiteContext::post_norm(residual.clone(), &norm);
        let hidden = self.site.hidden(self.dropout.adapted(hidden), &around);
        self.norm(hidden, Some(residual), 0.0)
    }

    /// `layer_norm(dropout(hidden) + residual)`.
    fn norm(&self, hidden: Tensor<3>, residual: Option<Tensor<3>>, dropout: f64) -> Tensor<3> {
        let gamma = self.layer_norm.gamma.val();
        let beta = self.layer_norm.beta.as_ref().map(Param::val);
        layer_norm(hidden, residual, gamma, beta, self.epsilon, dropout)
    }
}

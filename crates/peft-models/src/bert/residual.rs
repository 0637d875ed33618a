//! The end of both parts of a layer: projection, residual, normalisation.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, LayerNorm, Linear};
use burn::tensor::{Device, Tensor};
use peft_core::{AdaptedForward, Site, SiteKind, Surroundings};

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
}

impl BertResidual {
    pub(super) fn new(config: &BertConfig, d_in: usize, kind: SiteKind, device: &Device) -> Self {
        Self {
            dense: config.linear(d_in, config.hidden_size, device),
            layer_norm: config.norm(device),
            dropout: DropoutConfig::new(config.hidden_dropout_prob).init(),
            site: Site::new(kind, config.hidden_size),
        }
    }

    /// `norm(site(dropout(dense(x))) + residual)`: `x` is `[batch, seq, in]`, `residual` and the
    /// result are `[batch, seq, hidden_size]`.
    pub(super) fn forward(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let norm = |hidden| self.layer_norm.forward(hidden);
        let hidden = self.dropout.forward(self.dense.adapted(x));
        let hidden = self
            .site
            .hidden(hidden, &Surroundings::post_norm(residual.clone(), &norm));
        norm(hidden + residual)
    }
}

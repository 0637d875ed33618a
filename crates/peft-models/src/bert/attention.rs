//! The attention part of a layer.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::tensor::activation::softmax;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, Tensor};
use peft_core::{AdaptedForward, SiteKind};

use super::{BertConfig, BertResidual};

/// Attention and what follows it up to the next residual stream.
#[derive(Module, Debug)]
pub struct BertAttention {
    /// Upstream's `self`.
    pub self_attention: BertSelfAttention,
    /// Projection, residual and normalisation.
    pub output: BertResidual,
}

/// Multi-head self-attention without the output projection.
#[derive(Module, Debug)]
pub struct BertSelfAttention {
    /// Queries, `hidden_size` to `hidden_size`.
    pub query: Linear,
    /// Keys, `hidden_size` to `hidden_size`.
    pub key: Linear,
    /// Values, `hidden_size` to `hidden_size`.
    pub value: Linear,
    /// Dropout of the attention weights.
    pub dropout: Dropout,
    heads: usize,
}

impl BertAttention {
    pub(super) fn new(config: &BertConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        Self {
            self_attention: BertSelfAttention {
                query: config.linear(width, width, device),
                key: config.linear(width, width, device),
                value: config.linear(width, width, device),
                dropout: DropoutConfig::new(config.attention_probs_dropout_prob).init(),
                heads: config.num_attention_heads,
            },
            output: BertResidual::new(config, width, SiteKind::AttentionOutput, device),
        }
    }

    pub(super) fn forward(&self, x: Tensor<3>, mask: Option<&AttentionMask>) -> Tensor<3> {
        let context = self.self_attention.forward(x.clone(), mask);
        self.output.forward(context, x)
    }
}

/// What is added to the attention scores; built once per forward pass.
pub(super) struct AttentionMask(Tensor<4>);

impl AttentionMask {
    /// From `padding` `[batch, seq]`, for hidden states on `device`.
    pub(super) fn new(padding: Tensor<2, Bool>, device: &Device) -> Self {
        let [batch, length] = padding.dims();
        let mask = Tensor::zeros([batch, 1, 1, length], device)
            // Upstream's value: finite, so that a row of nothing but padding gives no NaN.
            .mask_fill(padding.reshape([batch, 1, 1, length]), f32::MIN);
        // Burn's fused kernel wants one row for each query. It would otherwise make one for each
        // query of each head, and that in every layer.
        Self(if device.is_autodiff() {
            mask
        } else {
            mask.repeat_dim(2, length)
        })
    }
}

impl BertSelfAttention {
    /// Context `[batch, seq, hidden_size]` for `x` of the same shape.
    pub(super) fn forward(&self, x: Tensor<3>, mask: Option<&AttentionMask>) -> Tensor<3> {
        let shape = x.dims();
        let query = self.split(self.query.adapted(x.clone()));
        let key = self.split(self.key.adapted(x.clone()));
        let value = self.split(self.value.adapted(x));
        let context = if query.device().is_autodiff() {
            self.attend(query, key, value, mask)
        } else {
            let mask = mask.map(|mask| mask.0.clone());
            attention(
                query,
                key,
                value,
                None,
                mask,
                AttentionModuleOptions::default(),
            )
        };
        context.swap_dims(1, 2).reshape(shape)
    }

    /// `[batch, seq, hidden_size]` as `[batch, heads, seq, hidden_size / heads]`.
    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, length, width] = x.dims();
        x.reshape([batch, length, self.heads, width / self.heads])
            .swap_dims(1, 2)
    }

    /// Attention step by step. Burn's fused one has neither a backward pass (autodiff takes it
    /// apart into more operations than these) nor dropout.
    fn attend(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        mask: Option<&AttentionMask>,
    ) -> Tensor<4> {
        let [.., width] = query.dims();
        // The queries are scaled rather than the scores, of which there are more.
        let scores = (query / (width as f64).sqrt()).matmul(key.transpose());
        let scores = match mask {
            Some(mask) => scores + mask.0.clone(),
            None => scores,
        };
        self.dropout.forward(softmax(scores, 3)).matmul(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_attending_agree() {
        for (name, device) in peft_core::device::cpu_devices() {
            let attention = BertAttention::new(&BertConfig::tiny(), &device).self_attention;
            let values: Vec<f32> = (0..2 * 5 * 32)
                .map(|i| (i as f32 * 0.7).sin() * 3.0)
                .collect();
            let x = Tensor::<1>::from_data(values.as_slice(), &device).reshape([2, 5, 32]);
            let padding = Tensor::<2, Bool>::from_data(
                [[false, false, false, true, true], [false; 5]],
                &device,
            );
            let mask = AttentionMask::new(padding, &device);
            let fused = attention.forward(x.clone(), Some(&mask));
            let parts = |linear: &Linear| attention.split(linear.forward(x.clone()));
            let stepwise = attention.attend(
                parts(&attention.query),
                parts(&attention.key),
                parts(&attention.value),
                Some(&mask),
            );
            let stepwise = stepwise.swap_dims(1, 2).reshape([2, 5, 32]);
            let error: f32 = (fused - stepwise).abs().max().into_scalar();
            assert!(error < 1e-5, "{name}: {error}");
        }
    }
}

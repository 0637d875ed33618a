//! A model small enough for tests.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::{Bert, BertConfig, HiddenAct};

impl BertConfig {
    /// A configuration for tests: width 32, 2 layers, 4 heads, feed-forward width 64, 97 tokens, 40
    /// positions, no dropout.
    pub fn tiny() -> Self {
        Self {
            vocab_size: 97,
            hidden_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            intermediate_size: 64,
            max_position_embeddings: 40,
            type_vocab_size: 2,
            hidden_act: HiddenAct::Gelu,
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            classifier_dropout: None,
            initializer_range: 0.2,
            layer_norm_eps: 1e-12,
            pad_token_id: Some(0),
        }
    }
}

impl Bert {
    /// A model for tests in which every parameter matters: of [`BertConfig::tiny`]'s shape, with
    /// biases that are not 0 and norms that are not 1, so that a forgotten one shows.
    ///
    /// The values come from a generator of our own: they are the same on every device, whatever
    /// its seed and whatever other threads draw.
    pub fn tiny(device: &Device) -> Self {
        BertConfig::tiny()
            .build(true, device)
            .map(&mut Scramble(0x5eed))
    }
}

/// Fills in noise; the state is that of Vigna's splitmix64.
pub(crate) struct Scramble(pub(crate) u64);

impl Scramble {
    /// Uniform in [-1, 1).
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

impl ModuleMapper for Scramble {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        // Vectors are biases and norms: noise around what they start from.
        let noise: Vec<f32> = (0..shape.num_elements())
            .map(|_| 0.3 * self.next())
            .collect();
        let device = param.lazy_device();
        let noise = Tensor::<D>::from_data(TensorData::new(noise, shape), &device);
        let value = if D == 1 {
            (noise + param.base()).detach()
        } else {
            noise
        };
        let id = param.id;
        param.transform_for_load(value, id)
    }
}
